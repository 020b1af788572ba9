"""The exercises on speed: the stub waits, solutions pass, each typical mistake is rejected by its name."""

import exercise_checks as checks

from book.exercises import planner as tasks

EVERY = [tasks.efficiencies, tasks.exposed, tasks.ranking]


def efficiencies_of_pairs(seconds):
    """Right as well: from the sorted series."""
    (first, base), *_ = sorted(seconds.items())
    return {n: base / took / (n / first) for n, took in seconds.items()}


def efficiencies_in_percent(seconds):
    return {n: 100 * e for n, e in tasks.strong_efficiency(seconds).items()}


def efficiencies_as_a_list(seconds):
    return list(tasks.strong_efficiency(seconds).values())


def speedup(seconds):
    return {n: seconds[min(seconds)] / took for n, took in seconds.items()}


def from_one_device(seconds):
    return {n: seconds[min(seconds)] / took / n for n, took in seconds.items()}


def exposed_from_the_end(backward, messages):
    """Right as well: the latest chain of messages, each of which waited for its gradients alone."""
    ends = [sum(backward[: i + 1]) + sum(messages[i:]) for i in range(len(backward))]
    return max(ends) - sum(backward)


def exposed_all(backward, messages):
    return sum(messages)


def exposed_rest(backward, messages):
    return max(0.0, sum(messages) - sum(backward))


def exposed_one_by_one(backward, messages):
    """As if each message had only the next layer's backward to hide behind: what is late stays late."""
    late = [max(0, message - layer) for message, layer in zip(messages, [*backward[1:], 0], strict=True)]
    return sum(late)


def exposed_last(backward, messages):
    return messages[-1]


def exposed_in_words(backward, messages):
    return "much"


def as_a_tuple():
    return ("B", "C", "A")


def whole_node_first():
    return ["A", "B", "C"]


def two_letters():
    return ["A", "B"]


test_the_stub_waits = checks.stubs_wait(EVERY)
test_right_answers_pass = checks.right_answers_pass(
    EVERY,
    [
        (tasks.efficiencies, efficiencies_of_pairs),
        (tasks.exposed, exposed_from_the_end),
        (tasks.ranking, as_a_tuple),
    ],
    {task.name: task.praise for task in EVERY},
)
test_wrong_answers_are_rejected = checks.wrong_answers_are_rejected(
    [
        (tasks.efficiencies, efficiencies_in_percent, "for 1 device: expected 1, given 100"),
        (tasks.efficiencies, efficiencies_as_a_list, "expected a dict with the keys [1, 2, 4, 8, 16, 32]"),
        (tasks.efficiencies, speedup, "that is the speedup"),
        (tasks.efficiencies, from_one_device, "need not begin with one device"),
        (tasks.exposed, exposed_all, "nothing is hidden then"),
        (tasks.exposed, exposed_rest, "not all of the backward can hide something"),
        (tasks.exposed, exposed_one_by_one, "a late message may be caught up with"),
        (tasks.exposed, exposed_last, "a message may have to wait"),
        (tasks.exposed, exposed_in_words, "expected a number of seconds"),
        (tasks.ranking, whole_node_first, "A (TP 8 x DP 8, micro-batch 1): measured 4.05 s"),
        (tasks.ranking, two_letters, "expected a list of the letters A, B, C in some order"),
    ]
)
