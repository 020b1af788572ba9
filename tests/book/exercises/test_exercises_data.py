"""The exercises on data parallelism: stubs wait or are wrong, solutions pass, typical mistakes are rejected by name."""

import exercise_checks as checks
import torch

from book.exercises import data as tasks
from lib import shard

EVERY = [tasks.training_step, tasks.mean_gradient, tasks.accumulate, tasks.zero_one]


def mean_of_means(group, w, x, y):
    return w - 0.1 * group.all_reduce(x.T @ (x @ w - y) / len(x)) / group.size


def summed(group, w, x, y):
    return w - 0.1 * group.all_reduce(x.T @ (x @ w - y) / len(x))


def local(group, w, x, y):
    return w - 0.1 * x.T @ (x @ w - y) / len(x)


def never_divided(group, w, x, y):
    return w - 0.1 * group.all_reduce(x.T @ (x @ w - y))


def gathers_batch(group, w, x, y):
    x, y = group.all_gather(x), group.all_gather(y)
    return w - 0.1 * x.T @ (x @ w - y) / len(x)


def guesses_count(group, w, x, y):
    return w - 0.1 * group.all_reduce(x.T @ (x @ w - y)) / (len(x) * group.size)


def only_rank_0(group, w, x, y):
    g = group.reduce(x.T @ (x @ w - y))
    n = group.reduce(torch.tensor(float(len(x)), dtype=x.dtype))
    return w - 0.1 * g / n if group.rank == 0 else w


def in_place(group, w, x, y):
    g = group.all_reduce(x.T @ (x @ w - y))
    n = group.all_reduce(torch.tensor(len(x), dtype=x.dtype))
    w -= 0.1 * g / n
    return w


def no_div(group, w, x, y):
    return group.all_reduce(x.T @ (x @ w - y) / len(x))


def by_samples_here(group, w, x, y):
    return group.all_reduce(x.T @ (x @ w - y)) / len(x)


def once_too_often(group, w, x, y):
    return group.all_reduce(x.T @ (x @ w - y)) / group.all_reduce(torch.tensor(len(x), dtype=x.dtype)) / group.size


def every_sample_sent(group, w, x, y):
    x, y = group.all_gather(x), group.all_gather(y)
    return x.T @ (x @ w - y) / len(x)


def syncs_twice(group, w, x1, y1, x2, y2):
    n = group.all_reduce(torch.tensor(len(x1) + len(x2), dtype=w.dtype))
    return (group.all_reduce(x1.T @ (x1 @ w - y1)) + group.all_reduce(x2.T @ (x2 @ w - y2))) / n


def first_only(group, w, x1, y1, x2, y2):
    return group.all_reduce(x1.T @ (x1 @ w - y1)) / group.all_reduce(torch.tensor(len(x1), dtype=w.dtype))


def second_only(group, w, x1, y1, x2, y2):
    return group.all_reduce(x2.T @ (x2 @ w - y2)) / group.all_reduce(torch.tensor(len(x2), dtype=w.dtype))


def doubled(group, w, x1, y1, x2, y2):
    return group.all_reduce(x1.T @ (x1 @ w - y1) + x2.T @ (x2 @ w - y2)) / group.all_reduce(
        torch.tensor(len(x1), dtype=w.dtype)
    )


def never_synced(group, w, x1, y1, x2, y2):
    return (x1.T @ (x1 @ w - y1) + x2.T @ (x2 @ w - y2)) / (len(x1) + len(x2))


def all_reduced(group, w, g, m):
    g = shard(group.all_reduce(g), group, 0)
    m = 0.9 * m + g
    return group.all_gather(shard(w, group, 0) - 0.1 * m), m


def not_gathered(group, w, g, m):
    g = group.reduce_scatter(g)
    m = 0.9 * m + g
    return shard(w, group, 0) - 0.1 * m, m


def mean_of_terms(group, w, g, m):
    g = group.reduce_scatter(g) / group.size
    m = 0.9 * m + g
    return group.all_gather(shard(w, group, 0) - 0.1 * m), m


def own_gradient(group, w, g, m):
    m = 0.9 * m + shard(g, group, 0)
    return group.all_gather(shard(w, group, 0) - 0.1 * m), m


def whole_state(group, w, g, m):
    g = group.all_gather(group.reduce_scatter(g))
    m = 0.9 * group.all_gather(m) + g
    return w - 0.1 * m, m


def gathers_state(group, w, g, m):
    g = group.reduce_scatter(g)
    m = 0.9 * m + g
    whole = group.all_gather(m)
    return w - 0.1 * whole, m


def in_one_message(group, w, x, y):
    mine = torch.cat([(x.T @ (x @ w - y)).flatten(), torch.tensor([len(x)], dtype=x.dtype)])
    total = group.all_reduce(mine)
    return w - 0.1 * total[:-1].reshape(w.shape) / total[-1]


def counted_in_float32(group, w, x, y):
    """Hint 3, word for word."""
    total = group.all_reduce(x.T @ (x @ w - y))
    count = group.all_reduce(torch.tensor(float(len(x))))
    return w - 0.1 * total / count


def counted_in_bytes(group, w, x, y):
    count = group.all_reduce(torch.tensor(len(x), dtype=torch.uint8))
    return group.all_reduce(x.T @ (x @ w - y)) / count


RIGHT = [
    (tasks.training_step, counted_in_float32),
    (tasks.mean_gradient, counted_in_bytes),
    (tasks.training_step, in_one_message),
    (tasks.zero_one, gathers_state),
]
WRONG = [
    (tasks.training_step, mean_of_means, "devices with fewer samples count as much as the others"),
    (tasks.training_step, summed, "the step is P times too long"),
    (tasks.training_step, local, "nothing was averaged"),
    (tasks.training_step, never_divided, "the step of the sum over all samples"),
    (tasks.training_step, gathers_batch, "does work twice"),
    (tasks.training_step, guesses_count, "x (7, 9)"),
    (tasks.training_step, only_rank_0, "rank 0 is right"),
    (tasks.training_step, in_place, "changes its input w in place"),
    (tasks.mean_gradient, no_div, "exactly 2 times too large"),
    (tasks.mean_gradient, by_samples_here, "exactly 2 times too large"),
    (tasks.mean_gradient, once_too_often, "exactly 2 times too small"),
    (tasks.mean_gradient, every_sample_sent, "does work twice"),
    (tasks.accumulate, syncs_twice, "sends too many bytes"),
    (tasks.accumulate, first_only, "only the first micro-batch counts"),
    (tasks.accumulate, second_only, "only the second micro-batch counts"),
    (tasks.accumulate, doubled, "twice too large"),
    (tasks.accumulate, never_synced, "no device sent anything"),
    (tasks.zero_one, all_reduced, "with all_reduce."),
    (tasks.zero_one, not_gathered, "The whole is needed"),
    (tasks.zero_one, mean_of_terms, "is wrong on 2 devices"),
    (tasks.zero_one, own_gradient, "is wrong on 2 devices"),
    (tasks.zero_one, whole_state, "this is the whole; each device is to return only its own piece"),
]

BROKEN = [  # after 2 devices with 4 samples were right
    (tasks.mean_gradient, ["is wrong on 2 devices with w (9, 5), x (7, 9)", "a mean of means"]),
]

test_the_stub_waits = checks.stubs_wait([tasks.training_step, tasks.accumulate, tasks.zero_one])
test_the_stub_to_be_mended_is_wrong_by_name = checks.stubs_to_be_mended_are_wrong(BROKEN)
test_a_right_answer_passes = checks.right_answers_pass(EVERY, RIGHT)
test_a_wrong_answer_is_rejected_by_name = checks.wrong_answers_are_rejected(WRONG)
test_the_solution_can_be_copied_from_the_page = checks.solutions_can_be_copied(EVERY, torch=torch, shard=shard)
test_the_page_shows_the_task_and_three_hints = checks.pages_show_task_and_hints(EVERY)
