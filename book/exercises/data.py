"""The exercises of the chapter "Data parallelism". Each function is a solution: read it after your own."""

from __future__ import annotations

import torch
from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input
from lib.devices import Group
from lib.devices.collectives import AllGather, AllReduce, ReduceScatter
from lib.devices.pieces import cut
from lib.parallel.sharding.placement import Partial, Replicate, Shard
from lib.parallel.sharding.shards import shard


def gradient(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Of the mean over the samples of `|x w - y|^2 / 2`."""
    return x.T @ (x @ w - y) / len(x)


def one_step(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return w - 0.1 * gradient(w, x, y)


def mean_of_means(parts: int, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    pieces = zip(cut(x, parts, 0), cut(y, parts, 0), strict=True)
    return sum(gradient(w, mine, right) for mine, right in pieces) / parts


@exercise(
    oracle=one_step,
    inputs={"w": Input("in out"), "x": Input("batch in", Shard(0)), "y": Input("batch out", Shard(0))},
    returns={"the new w": Replicate()},
    forward=(Talk(AllReduce(), "in out"), Talk(AllReduce(), "")),
    mistakes={
        "a mean of means: devices with fewer samples count as much as the others. Add the sums, and the counts.": (
            lambda parts, w, x, y: w - 0.1 * mean_of_means(parts, w, x, y)
        ),
        "the sum over the devices was not divided: the step is P times too long.": (
            lambda parts, w, x, y: w - 0.1 * parts * mean_of_means(parts, w, x, y)
        ),
        "each device made the step of its own samples: nothing was averaged.": lambda parts, w, x, y: one_step(
            w, cut(x, parts, 0)[0], cut(y, parts, 0)[0]
        ),
        "divided by nothing: this is the step of the sum over all samples, not of the mean.": (
            lambda parts, w, x, y: w - 0.1 * len(x) * gradient(w, x, y)
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


def averaged_twice(group: Group, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    mine = x.T @ (x @ w - y) / len(x)
    return group.all_reduce(mine) / group.size


@exercise(
    oracle=gradient,
    inputs={"w": Input("in out"), "x": Input("batch in", Shard(0)), "y": Input("batch out", Shard(0))},
    returns={"the gradient": Replicate()},
    forward=(Talk(AllReduce(), "in out"), Talk(AllReduce(), "")),
    broken=averaged_twice,
    mistakes={
        "a mean of means. It is right when all devices have equally many samples, and only then.": mean_of_means,
    },
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


def both(w: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    return gradient(w, torch.cat([x1, x2]), torch.cat([y1, y2]))


@exercise(
    oracle=both,
    inputs={
        "w": Input("in out"),
        "x1": Input("batch in", Shard(0)),
        "y1": Input("batch out", Shard(0)),
        "x2": Input("batch in", Shard(0)),
        "y2": Input("batch out", Shard(0)),
    },
    returns={"the gradient": Replicate()},
    forward=(Talk(AllReduce(), "in out"), Talk(AllReduce(), "")),
    mistakes={
        "only the first micro-batch counts.": lambda parts, w, x1, y1, x2, y2: gradient(w, x1, y1),
        "only the second micro-batch counts: it replaced the first.": lambda parts, w, x1, y1, x2, y2: gradient(
            w, x2, y2
        ),
        "the two were added, not averaged: twice too large.": lambda parts, w, *batches: 2 * both(w, *batches),
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


def momentum_step(w: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    m = 0.9 * m + g
    return w - 0.1 * m, m


@exercise(
    oracle=momentum_step,
    inputs={"w": Input("n"), "g": Input("n", Partial()), "m": Input("n", Shard(0))},
    returns={"the new w": Replicate(), "the new m": Shard(0)},
    forward=(Talk(ReduceScatter(0), "n"), Talk(AllGather(0), "n")),
    only=("reduce_scatter", "all_gather"),
    hints=(
        "This device keeps the state of its piece of the parameters alone. Which part of the gradient does it need?",
        "group.reduce_scatter(g) is this device's finished piece of the gradient, as long as m. Its piece of w is "
        "shard(w, group, 0).",
        "Step the piece: m = 0.9 m + g, w = w - 0.1 m. Then group.all_gather(w) gives every device the whole w again.",
    ),
)
def zero_one(group: Group, w: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """ZeRO stage 1: a step of SGD with momentum whose state is cut over the devices. Return (new w, new m).

    w (n,) is whole; g (n,) is this device's term of the gradient; m (n/P,) is its piece of the momentum.
    m becomes 0.9 m + gradient, then w becomes w - 0.1 m.
    """
    g = group.reduce_scatter(g)  # (n/P,)  Partial -> Shard(0)
    m = 0.9 * m + g  # (n/P,)  Shard(0)
    mine = shard(w, group, 0) - 0.1 * m  # (n/P,)  Shard(0)
    return group.all_gather(mine), m  # (n,)  Shard(0) -> Replicate
