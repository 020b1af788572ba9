"""The exercises on pipelines: the stub waits, solutions pass, each typical mistake is rejected by its name."""

import exercise_checks as checks
import torch

from book.exercises import pipeline as tasks
from lib import Backward, BackwardInput, Forward, Recv, Send, zb_h1

EVERY = [tasks.gpipe_lists, tasks.one_f_one_b_lists, tasks.in_halves, tasks.place, tasks.mend]
GPIPE, ONE_F_ONE_B = tasks.lists_of(tasks.schedules.gpipe), tasks.lists_of(tasks.schedules.one_f_one_b)
NAIVE = tasks.lists_of(tasks.schedules.naive)


# ---- lists ----


def gpipe_backwards_in_another_order(p, m):
    """Right as well: the last micro-batch first."""
    return [[Forward(r, k) for k in range(m)] + [Backward(r, k) for k in reversed(range(m))] for r in range(p)]


def gpipe_without_backwards(p, m):
    return [[Forward(r, k) for k in range(m)] for r in range(p)]


def gpipe_all_stages_everywhere(p, m):
    return [[kind(s, k) for kind in (Forward, Backward) for s in range(2) for k in range(m)] for r in range(p)]


def gpipe_one_micro_batch_less(p, m):
    return GPIPE(p, m - 1)


def gpipe_one_list(p, m):
    return [step for steps in GPIPE(p, m) for step in steps]


def gpipe_with_text(p, m):
    return [["F"] * m] * p


def gpipe_that_stops(p, m):
    return [Forward(r)[0] for r in range(p)]


def one_f_one_b_that_counts(p, m):
    """Right as well: a forward as long as fewer than p - r are held, else a backward."""
    lists = []
    for r in range(p):
        steps, done, back = [], 0, 0
        while back < m:
            if done < m and done - back < p - r:
                steps.append(Forward(r, done))
                done += 1
            else:
                steps.append(Backward(r, back))
                back += 1
        lists.append(steps)
    return lists


def two_more_ahead(p, m):
    lists = []
    for r in range(p):
        ahead = min(m, p + 1 - r)
        steps = [Forward(r, k) for k in range(ahead)]
        for k in range(m - ahead):
            steps += [Backward(r, k), Forward(r, ahead + k)]
        lists.append(steps + [Backward(r, k) for k in range(m - ahead, m)])
    return lists


def zero_bubble(p, m):
    return [list(steps) for steps in zb_h1(p, m).steps]


# ---- halves ----


def halves_at_once(x, w, dy):
    dw = dy.T @ x
    return dy @ w, lambda: dw


def halves_by_einsum(x, w, dy):
    """Right as well."""

    def weights():
        return torch.einsum("to,ti->oi", dy, x)

    return torch.einsum("to,oi->ti", dy, w), weights


def halves_swapped(x, w, dy):
    return dy.T @ x, lambda: dy @ w


def halves_transposed(x, w, dy):
    return dy @ w, lambda: x.T @ dy


def halves_doubled(x, w, dy):
    return 2 * dy @ w, lambda: dy.T @ x


def halves_not_a_function(x, w, dy):
    return dy @ w, dy.T @ x


# ---- place ----


def place_head_alone(costs, p):
    return [*tasks.equal_numbers(costs[:-1], p - 1), 1]


def place_more_layers_than_there_are(costs, p):
    return [len(costs)] * p


def place_nothing_somewhere(costs, p):
    return [len(costs), *[0] * (p - 1)]


# ---- mend ----


def mend_all_receives_first(steps):
    """Right as well: who asks early waits for nobody."""
    return [sorted(some, key=lambda step: not isinstance(step, Recv)) for some in steps]


def mend_not(steps):
    return steps


def mend_sends_first(steps):
    return [sorted(some, key=lambda step: not isinstance(step, Send)) for some in steps]


def mend_without_messages(steps):
    return [[step for step in some if not isinstance(step, Send | Recv)] for some in steps]


def mend_by_gpipe(steps):
    return [sorted(some, key=lambda step: (isinstance(step, Backward), step.micro)) for some in steps]


test_the_stub_waits = checks.stubs_wait(EVERY)
test_right_answers_pass = checks.right_answers_pass(
    EVERY,
    [
        (tasks.gpipe_lists, gpipe_backwards_in_another_order),
        (tasks.one_f_one_b_lists, one_f_one_b_that_counts),
        (tasks.in_halves, halves_by_einsum),
        (tasks.mend, mend_all_receives_first),
    ],
    {task.name: task.praise for task in EVERY},
)
test_wrong_answers_are_rejected = checks.wrong_answers_are_rejected(
    [
        (tasks.gpipe_lists, NAIVE, "nobody ever works beside another"),
        (tasks.gpipe_lists, ONE_F_ONE_B, "has a forward behind a backward"),
        (tasks.gpipe_lists, gpipe_without_backwards, "0 backwards (B)"),
        (tasks.gpipe_lists, gpipe_all_stages_everywhere, "needs the gradient of micro-batch 0 from stage 1"),
        (tasks.gpipe_lists, gpipe_one_micro_batch_less, "it has 2 micro-batches"),
        (tasks.gpipe_lists, gpipe_one_list, "expected 1 list of steps, one for each device, given a list of 6"),
        (tasks.gpipe_lists, gpipe_with_text, "expected steps Forward and Backward, given 'F'"),
        (tasks.gpipe_lists, gpipe_that_stops, "TypeError"),
        (tasks.one_f_one_b_lists, GPIPE, "this is GPipe"),
        (tasks.one_f_one_b_lists, NAIVE, "each device waits for its own gradient"),
        (tasks.one_f_one_b_lists, tasks.same_warm_up, "all devices go equally far ahead"),
        (tasks.one_f_one_b_lists, tasks.no_cool_down, "what went ahead still needs its backwards"),
        (tasks.one_f_one_b_lists, two_more_ahead, "holds too much for"),
        (tasks.one_f_one_b_lists, zero_bubble, f"given {BackwardInput(0, 0)!r}"),
        (tasks.in_halves, halves_at_once, "does all at once"),
        (tasks.in_halves, halves_swapped, "dx must be of shape (5, 3), given (4, 3)"),
        (tasks.in_halves, halves_transposed, "dw must be of shape (4, 3), given (3, 4)"),
        (tasks.in_halves, halves_doubled, "dx is not the gradient of one device"),
        (tasks.in_halves, lambda x, w, dy: (dy @ w, lambda one: dy.T @ x), "fails for the call of later()"),
        (tasks.in_halves, halves_not_a_function, "expected dx and a function that gives dw"),
        (tasks.place, tasks.equal_numbers, "their times are not"),
        (tasks.place, place_head_alone, "can be faster"),
        (tasks.place, place_more_layers_than_there_are, "104 layers are placed, but there are 26"),
        (tasks.place, place_nothing_somewhere, "each at least 1"),
        (tasks.mend, mend_not, "still cannot run where sends wait"),
        (tasks.mend, mend_sends_first, "still cannot run where sends wait"),
        (tasks.mend, mend_without_messages, "device 0 must have the same steps as before"),
        (tasks.mend, mend_by_gpipe, "move messages only"),
    ]
)
