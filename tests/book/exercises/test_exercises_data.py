"""The exercises on data parallelism: stubs wait or are wrong, solutions pass, typical mistakes are rejected by name."""

import exercise_checks as checks
import torch

from book.exercises import data as tasks

EVERY = [tasks.training_step, tasks.mean_gradient, tasks.accumulate]


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


def step_by_torchs_optimizer(group, w, x, y):
    p = w.clone().requires_grad_()
    p.grad = group.all_reduce(x.T @ (x @ w - y)) / group.all_reduce(torch.tensor(len(x)))
    torch.optim.SGD([p], lr=0.1).step()
    return p.detach()


def counts_gathered(group, w, x, y):
    samples = group.all_gather(torch.tensor([len(x)])).sum()
    return w - 0.1 * group.all_reduce(x.T @ (x @ w - y)) / samples


def gradient_by_func(group, w, x, y):
    mine = torch.func.grad(lambda w: (x @ w - y).square().sum() / 2)(w)
    return group.all_reduce(mine).div(group.all_reduce(torch.tensor(x.shape[0])))


def accumulate_by_autograd(group, w, x1, y1, x2, y2):
    p = w.clone().requires_grad_()
    for x, y in ((x1, y1), (x2, y2)):
        ((x @ p - y).square().sum() / 2).backward()
    return group.all_reduce(p.grad) / group.all_reduce(torch.tensor(len(x1) + len(x2)))


def step_without_a_rate(group, w, x, y):
    return w - group.all_reduce(x.T @ (x @ w - y)) / group.all_reduce(torch.tensor(len(x)))


def step_counts_numbers(group, w, x, y):
    return w - 0.1 * group.all_reduce(x.T @ (x @ w - y)) / group.all_reduce(torch.tensor(x.numel()))


def step_by_torchs_mse(group, w, x, y):
    p = w.clone().requires_grad_()
    torch.nn.functional.mse_loss(x @ p, y).backward()
    return w - 0.1 * group.all_reduce(p.grad) / group.size


def steps_too_far(group, w, x, y):
    return w - 0.1 * group.all_reduce(x.T @ (x @ w - y)) / group.all_reduce(torch.tensor(len(x)))


def mean_here(w, x, y):
    return x.T @ (x @ w - y) / len(x)


def means_averaged(group, w, x1, y1, x2, y2):
    return group.all_reduce((mean_here(w, x1, y1) + mean_here(w, x2, y2)) / 2) / group.size


def means_added(group, w, x1, y1, x2, y2):
    return group.all_reduce(mean_here(w, x1, y1) + mean_here(w, x2, y2)) / group.size


def doubled(group, w, x1, y1, x2, y2):
    return group.all_reduce(x1.T @ (x1 @ w - y1) + x2.T @ (x2 @ w - y2)) / group.all_reduce(
        torch.tensor(len(x1), dtype=w.dtype)
    )


def never_synced(group, w, x1, y1, x2, y2):
    return (x1.T @ (x1 @ w - y1) + x2.T @ (x2 @ w - y2)) / (len(x1) + len(x2))


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


# ---- more styles ----


def weighted_as_the_hint_says(group, w, x, y):
    """Hint 3 counts in float32; the weight of a device is then rounded to 7 digits."""
    count = group.all_reduce(torch.tensor(float(len(x))))
    mine = x.T @ (x @ w - y) / len(x)
    return w - 0.1 * group.all_reduce(mine * (len(x) / count))


def sample_by_sample(group, w, x, y):
    total = torch.zeros_like(w)
    for one, right in zip(x, y, strict=True):
        total += torch.outer(one, one @ w - right)
    return w.sub(group.all_reduce(total) / group.all_reduce(x.new_tensor(len(x))), alpha=0.1)


def by_autograd(group, w, x, y):
    with torch.enable_grad():
        own = w.clone().requires_grad_()
        ((x @ own - y) ** 2 / 2).sum().backward()
    count = group.all_reduce(torch.tensor([len(x)]))
    return w - 0.1 * group.all_reduce(own.grad) / count


def gradient_einsum(group, w, x, y):
    errors = torch.einsum("bi,io->bo", x, w) - y
    return group.all_reduce(torch.einsum("bi,bo->io", x, errors)) / group.all_reduce(torch.tensor(len(x)))


def gradient_weighted(group, w, x, y):
    count = group.all_reduce(torch.tensor(len(x), dtype=x.dtype))
    return group.all_reduce((x * (len(x) / count)).T @ (x @ w - y) / len(x))


def gradient_in_place(group, w, x, y):
    g = x.T @ (x @ w - y)
    g = group.all_reduce(g)
    g /= group.all_reduce(torch.tensor(float(len(x)), dtype=torch.float64))
    return g


def accumulate_joined(group, w, x1, y1, x2, y2):
    x, y = torch.cat([x1, x2]), torch.cat([y1, y2])
    return group.all_reduce(x.T @ (x @ w - y)) / group.all_reduce(torch.tensor(len(x)))


def accumulate_in_a_loop(group, w, *batches):
    total, count = torch.zeros_like(w), 0
    for x, y in zip(batches[::2], batches[1::2], strict=True):
        total += x.T @ (x @ w - y)
        count += len(x)
    return group.all_reduce(total) / group.all_reduce(torch.tensor(count))


def accumulate_in_one_message(group, w, x1, y1, x2, y2):
    mine = x1.T @ (x1 @ w - y1) + x2.T @ (x2 @ w - y2)
    sent = group.all_reduce(torch.cat([mine.flatten(), mine.new_tensor([len(x1) + len(x2)])]))
    return (sent[:-1] / sent[-1]).view_as(w)


def step_guessed(group, w, x, y):
    return w - 0.1 * group.all_reduce(x.T @ (x @ w - y)) / (len(x) * group.size)


def step_mean_over_outputs(group, w, x, y):
    return w - 0.1 * group.all_reduce(x.T @ (x @ w - y) / y.numel()) / group.size


def step_by_mse(group, w, x, y):
    total = group.all_reduce(x.T @ (x @ w - y))
    return w - 0.1 * total / group.all_reduce(torch.tensor(float(y.numel()), dtype=x.dtype))


def step_by_devices(group, w, x, y):
    return w - 0.1 * group.all_reduce(x.T @ (x @ w - y)) / group.size


def step_doubled(group, w, x, y):
    return w - 0.2 * group.all_reduce(x.T @ (x @ w - y)) / group.all_reduce(torch.tensor(len(x), dtype=x.dtype))


def step_uphill(group, w, x, y):
    return w + 0.1 * group.all_reduce(x.T @ (x @ w - y)) / group.all_reduce(torch.tensor(len(x), dtype=x.dtype))


def gradient_by_devices(group, w, x, y):
    return group.all_reduce(x.T @ (x @ w - y)) / group.size


def accumulate_means(group, w, x1, y1, x2, y2):
    mine = (x1.T @ (x1 @ w - y1) + x2.T @ (x2 @ w - y2)) / (len(x1) + len(x2))
    return group.all_reduce(mine) / group.size


def accumulate_by_devices(group, w, x1, y1, x2, y2):
    return group.all_reduce(x1.T @ (x1 @ w - y1) + x2.T @ (x2 @ w - y2)) / group.size


def accumulate_guessed(group, w, x1, y1, x2, y2):
    total = group.all_reduce(x1.T @ (x1 @ w - y1) + x2.T @ (x2 @ w - y2))
    return total / ((len(x1) + len(x2)) * group.size)


RIGHT = [
    (tasks.training_step, step_by_torchs_optimizer),
    (tasks.training_step, counts_gathered),
    (tasks.mean_gradient, gradient_by_func),
    (tasks.accumulate, accumulate_by_autograd),
    (tasks.training_step, sample_by_sample),
    (tasks.training_step, by_autograd),
    (tasks.mean_gradient, gradient_einsum),
    (tasks.mean_gradient, gradient_weighted),
    (tasks.mean_gradient, gradient_in_place),
    (tasks.accumulate, accumulate_joined),
    (tasks.accumulate, accumulate_in_a_loop),
    (tasks.accumulate, accumulate_in_one_message),
    (tasks.training_step, counted_in_float32),
    (tasks.mean_gradient, counted_in_bytes),
    (tasks.training_step, in_one_message),
]
REMARKED = [
    (tasks.training_step, weighted_as_the_hint_says, "Right to 7 digits: there is a float32 on the way"),
]

WRONG = [
    (tasks.training_step, step_without_a_rate, "the rate 0.1 is missing"),
    (tasks.training_step, step_counts_numbers, "numbers were counted, not samples"),
    (tasks.training_step, step_by_torchs_mse, "and no half, as in mse_loss"),
    (tasks.mean_gradient, steps_too_far, "the gradient was asked for, not w after a step"),
    (tasks.accumulate, means_averaged, "right when both have equally many samples, and only then"),
    (tasks.accumulate, means_added, "both micro-batches' means were added"),
    (tasks.training_step, step_guessed, "not counted but guessed, as P times the own ones"),
    (tasks.training_step, step_mean_over_outputs, "a mean of means, and over the outputs, too"),
    (tasks.training_step, step_by_mse, "a mean over the outputs, too"),
    (tasks.training_step, step_by_devices, "was divided by the number of devices. Divide it by the number of samples"),
    (tasks.training_step, step_doubled, "takes the 2 of the derivative away"),
    (tasks.training_step, step_uphill, "the step goes uphill"),
    (tasks.mean_gradient, gradient_by_devices, "was divided by the number of devices"),
    (tasks.accumulate, accumulate_means, "a mean of means"),
    (tasks.accumulate, accumulate_by_devices, "was divided by the number of devices"),
    (tasks.accumulate, accumulate_guessed, "not counted but guessed"),
    (tasks.training_step, mean_of_means, "a mean of means. It is right when all devices have equally many samples"),
    (tasks.training_step, summed, "the means of all devices were added, and not divided"),
    (tasks.training_step, local, "nothing was averaged"),
    (tasks.training_step, never_divided, "the gradient of the sum over all samples, not of the mean"),
    (tasks.training_step, gathers_batch, "does work twice"),
    (tasks.training_step, guesses_count, "guessed"),
    (tasks.training_step, only_rank_0, "on rank 0, the new w is right"),
    (tasks.training_step, in_place, "changes its input w in place"),
    (tasks.mean_gradient, no_div, "the means of all devices were added, and not divided"),
    (tasks.mean_gradient, by_samples_here, "divided by the samples of one device"),
    (tasks.mean_gradient, once_too_often, "and by the number of devices once more"),
    (tasks.mean_gradient, every_sample_sent, "does work twice"),
    (tasks.accumulate, syncs_twice, "the gradient travels once for each micro-batch"),
    (tasks.accumulate, first_only, "only the first micro-batch counts"),
    (tasks.accumulate, second_only, "only the second micro-batch counts"),
    (tasks.accumulate, doubled, "the samples of the first micro-batch alone were counted"),
    (tasks.accumulate, never_synced, "each device used its own samples alone"),
]

BROKEN = [  # after 2 devices with 4 samples were right
    (tasks.mean_gradient, ["is wrong on 2 devices with w (9, 5), x (7, 9)", "a mean of means"]),
]

test_the_stub_waits = checks.stubs_wait([tasks.training_step, tasks.accumulate])
test_the_stub_to_be_mended_is_wrong_by_name = checks.stubs_to_be_mended_are_wrong(BROKEN)
test_a_right_answer_passes = checks.right_answers_pass([], RIGHT)
test_a_right_answer_is_told_what_nobody_asked_for = checks.right_but(REMARKED)
test_a_wrong_answer_is_rejected_by_name = checks.wrong_answers_are_rejected(WRONG)
test_the_solution_can_be_copied_from_the_page = checks.solutions_can_be_copied(EVERY, {}, torch=torch)
test_the_page_shows_the_task_and_three_hints = checks.pages_show_task_and_hints(EVERY)
