"""The exercises of the chapter "Data parallelism". Each function is a solution: read it after your own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input
from lib.devices import Group
from lib.devices.collectives import AllReduce
from lib.parallel.sharding.placement import Replicate, Shard


def gradient(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Of the mean over the samples of `|x w - y|^2 / 2`."""
    return x.T @ (x @ w - y) / len(x)


def one_step(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return w - 0.1 * gradient(w, x, y)


TWICE = "twice too large: the half in |x w - y|^2 / 2 takes the 2 of the derivative away."


def of_samples(
    total: Callable[..., Tensor],
    count: Callable[..., int],
    done: Callable[[Tensor, Tensor], Tensor],
    twice: str = TWICE,
) -> dict[str, Callable[..., Tensor]]:
    """The ways to divide wrongly. A device's own `total(*inputs)` and `count(*inputs)`; `done(w, g)` is returned."""

    def slip(wrong: Callable[[Group, Tensor, int], Tensor]) -> Callable[..., Tensor]:
        return lambda group, *inputs: done(inputs[0], wrong(group, total(*inputs), count(*inputs)))

    def mean(group: Group, g: Tensor, n: int) -> Tensor:
        return group.all_reduce(g) / group.all_reduce(torch.tensor(n, dtype=g.dtype))

    return {
        "a mean of means. It is right when all devices have equally many samples, and only then.": slip(
            lambda group, g, n: group.all_reduce(g / n) / group.size
        ),
        "the means of all devices were added, and not divided: P times too large.": slip(
            lambda group, g, n: group.all_reduce(g / n)
        ),
        "the sum over all samples was divided by the samples of one device. Divide by those of all.": slip(
            lambda group, g, n: group.all_reduce(g) / n
        ),
        "the samples were not counted but guessed, as P times the own ones. Others may have fewer: ask them.": slip(
            lambda group, g, n: group.all_reduce(g) / (n * group.size)
        ),
        "the sum over all samples was divided by the number of devices. Divide it by the number of samples.": slip(
            lambda group, g, n: group.all_reduce(g) / group.size
        ),
        "divided by nothing: this is the gradient of the sum over all samples, not of the mean.": slip(
            lambda group, g, n: group.all_reduce(g)
        ),
        "divided by the samples, and by the number of devices once more.": slip(
            lambda group, g, n: mean(group, g, n) / group.size
        ),
        "a mean over the outputs, too. |x w - y|^2 is a sum over a sample's outputs: only samples are averaged.": slip(
            lambda group, g, n: mean(group, g, n) / g.shape[1]
        ),
        "a mean of means, and over the outputs, too. |x w - y|^2 is the sum over a sample's outputs.": slip(
            lambda group, g, n: group.all_reduce(g / n) / group.size / g.shape[1]
        ),
        "a mean over the outputs, and no half, as in mse_loss. The loss here is a sum over the outputs.": slip(
            lambda group, g, n: 2 * group.all_reduce(g / n) / group.size / g.shape[1]
        ),
        twice: slip(lambda group, g, n: 2 * mean(group, g, n)),
        "each device used its own samples alone: nothing was averaged.": slip(lambda group, g, n: g / n),
    }


def sum_here(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return x.T @ (x @ w - y)


def samples_here(w: Tensor, x: Tensor, y: Tensor) -> int:
    return len(x)


@exercise(
    oracle=one_step,
    inputs={"w": Input("in out"), "x": Input("batch in", Shard(0)), "y": Input("batch out", Shard(0))},
    returns={"the new w": Replicate()},
    forward=(Talk(AllReduce(), "in out"), Talk(AllReduce(), "")),
    limited=False,
    slips={
        **of_samples(sum_here, samples_here, lambda w, g: w - 0.1 * g),
        "w itself was added up over the devices, with the step: let the gradient travel, and subtract it once.": (
            lambda group, w, x, y: group.all_reduce(
                w - 0.1 * sum_here(w, x, y) / group.all_reduce(torch.tensor(len(x), dtype=x.dtype))
            )
        ),
        "the step goes uphill: subtract the gradient.": lambda group, w, x, y: (
            w + 0.1 * group.all_reduce(sum_here(w, x, y)) / group.all_reduce(torch.tensor(len(x), dtype=x.dtype))
        ),
    },
    mistakes={
        "this is the gradient, not w after the step.": lambda parts, w, x, y: gradient(w, x, y),
        "the rate 0.1 is missing.": lambda parts, w, x, y: w - gradient(w, x, y),
        "numbers were counted, not samples: a sample of x has several.": lambda parts, w, x, y: (
            w - 0.1 * gradient(w, x, y) / x.shape[1]
        ),
    },
    hints=(
        "The gradient of the mean is the sum of all samples' gradients, divided by the number of all samples. Which of "
        "the two numbers does a device know?",
        "x.T @ (x @ w - y) is the sum over this device's samples. all_reduce adds the sums of all devices. How many "
        "samples were there? Ask in the same way.",
        "total = group.all_reduce(x.T @ (x @ w - y)); count = group.all_reduce(torch.tensor(float(len(x)))); then one "
        "step against total / count.",
    ),
)
def training_step(group: Group, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """One step of gradient descent, with rate 0.1, on the mean of `|x w - y|^2 / 2` over the samples of ALL devices.

    w (in, out) is the same everywhere; x (batch/P, in) and y (batch/P, out) are this device's samples, and not every
    device need have equally many. Return the new w.
    """
    total = group.all_reduce(x.T @ (x @ w - y))  # (in, out)  Replicate: the sum over all samples
    count = group.all_reduce(torch.tensor(len(x), dtype=x.dtype))  # ()  Replicate
    return w - 0.1 * total / count


def one_step_of(parts: int, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return one_step(w, x, y)


def averaged_twice(group: Group, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    mine = x.T @ (x @ w - y) / len(x)
    return group.all_reduce(mine) / group.size


@exercise(
    oracle=gradient,
    inputs={"w": Input("in out"), "x": Input("batch in", Shard(0)), "y": Input("batch out", Shard(0))},
    returns={"the gradient": Replicate()},
    forward=(Talk(AllReduce(), "in out"), Talk(AllReduce(), "")),
    limited=False,
    broken=averaged_twice,
    slips=of_samples(sum_here, samples_here, lambda w, g: g),
    mistakes={"the gradient was asked for, not w after a step.": one_step_of},
    hints=(
        "On which of the trials is the program right, and on which is it wrong? Look at the number of samples.",
        "With 5 samples on 2 devices, one has 3, one has 2. What does each sample weigh in a mean of the two means?",
        "Multiply each device's mean by its own number of samples, or never divide by it; add; divide once by the "
        "number of all samples.",
    ),
)
def mean_gradient(group: Group, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the mean of `|x w - y|^2 / 2` over the samples of all devices, on every device.

    w (in, out) is the same everywhere; x (batch/P, in) and y (batch/P, out) are this device's samples.
    """
    total = group.all_reduce(x.T @ (x @ w - y))  # (in, out)  Replicate
    return total / group.all_reduce(torch.tensor(len(x), dtype=x.dtype))


def sum_of_both(w: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    return sum_here(w, x1, y1) + sum_here(w, x2, y2)


def means_of_both(w: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
    return gradient(w, x1, y1), gradient(w, x2, y2)


def samples_of_both(w: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> int:
    return len(x1) + len(x2)


def both(w: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    return gradient(w, torch.cat([x1, x2]), torch.cat([y1, y2]))


@exercise(
    oracle=both,
    inputs={
        "w": Input("in out"),
        "x1": Input("batch in", Shard(0)),
        "y1": Input("batch out", Shard(0)),
        "x2": Input("others in", Shard(0)),
        "y2": Input("others out", Shard(0)),
    },
    returns={"the gradient": Replicate()},
    forward=(Talk(AllReduce(), "in out"), Talk(AllReduce(), "")),
    slips={
        **of_samples(
            sum_of_both,
            samples_of_both,
            lambda w, g: g,
            twice="twice too large: the half in |x w - y|^2 / 2 takes the 2 of the derivative away.",
        ),
        "both micro-batches' means were added. Add the sums over samples, and divide once, by all samples.": (
            lambda group, w, *both: group.all_reduce(sum(means_of_both(w, *both))) / group.size
        ),
        "a mean of the micro-batches' means. It is right when both have equally many samples, and only then.": (
            lambda group, w, *both: group.all_reduce(sum(means_of_both(w, *both)) / 2) / group.size
        ),
        "the means of both micro-batches and of all devices were added. Add sums over samples, and divide once.": (
            lambda group, w, *both: group.all_reduce(sum(means_of_both(w, *both)))
        ),
        "divided by the samples, and by the number of micro-batches once more.": lambda group, w, *both: (
            group.all_reduce(sum_of_both(w, *both))
            / group.all_reduce(torch.tensor(samples_of_both(w, *both), dtype=w.dtype))
            / 2
        ),
        "the samples of the first micro-batch alone were counted.": lambda group, w, x1, y1, x2, y2: (
            group.all_reduce(sum_of_both(w, x1, y1, x2, y2)) / group.all_reduce(torch.tensor(len(x1), dtype=w.dtype))
        ),
        "the samples of the second micro-batch alone were counted.": lambda group, w, x1, y1, x2, y2: (
            group.all_reduce(sum_of_both(w, x1, y1, x2, y2)) / group.all_reduce(torch.tensor(len(x2), dtype=w.dtype))
        ),
        "the gradient travels once for each micro-batch. Add both on the device, then let the sum travel.": (
            lambda group, w, x1, y1, x2, y2: (
                (group.all_reduce(sum_here(w, x1, y1)) + group.all_reduce(sum_here(w, x2, y2)))
                / group.all_reduce(torch.tensor(len(x1) + len(x2), dtype=w.dtype))
            )
        ),
    },
    mistakes={
        "a mean of the two means: the smaller micro-batch counts as much as the other. Add sums, divide once.": (
            lambda parts, w, x1, y1, x2, y2: (gradient(w, x1, y1) + gradient(w, x2, y2)) / 2
        ),
        "only the first micro-batch counts.": lambda parts, w, x1, y1, x2, y2: gradient(w, x1, y1),
        "only the second micro-batch counts: it replaced the first.": lambda parts, w, x1, y1, x2, y2: gradient(
            w, x2, y2
        ),
    },
    hints=(
        "A gradient need not travel before the last micro-batch is done. What can be added up on the device itself?",
        "x1.T @ (x1 @ w - y1) + x2.T @ (x2 @ w - y2) is this device's sum. Now it may travel, once.",
        "One all_reduce for the sum, one for the number of samples; divide.",
    ),
)
def accumulate(group: Group, w: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    """The gradient of the mean over both micro-batches of all devices, with ONE synchronization of the gradient.

    (x1, y1) and (x2, y2) are this device's samples of two micro-batches; w (in, out) is the same everywhere.
    """
    mine = x1.T @ (x1 @ w - y1) + x2.T @ (x2 @ w - y2)  # (in, out)  Partial
    count = torch.tensor(len(x1) + len(x2), dtype=w.dtype)  # ()  Partial
    return group.all_reduce(mine) / group.all_reduce(count)
