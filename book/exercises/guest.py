"""The exercises of the chapter "Bring your own program". Each function is a solution: read it after your own."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from book.exercises.check.answers import unfinished
from book.exercises.check.failed import kind, oddness
from book.exercises.check.planning import planning
from book.exercises.check.simulated import simulated
from book.exercises.check.verdict import Fault
from lib.devices.cluster import Cluster
from lib.devices.counts import counted
from lib.examples.guests import greedy
from lib.guest.program import script
from lib.guest.report import reported

# ---- which line sends most ----

LETTERS = "ABCD"


@cache
def sent_by_line(devices: int) -> dict[str, int]:
    """Bytes that the lines A to D of `greedy` send, from a run on so many devices."""
    sent = dict.fromkeys(LETTERS, 0)
    for line in reported(Cluster(devices), script(greedy.__file__)).lines:
        mark = re.search(r"# ([A-D])$", line.source)
        if mark:
            sent[mark[1]] += line.sent
    return sent


def busiest(devices: int) -> str:
    sent = sent_by_line(devices)
    return max(sent, key=lambda letter: sent[letter])


def judge_line(given: Any, right: str, devices: int) -> None:
    """One letter, and the right one."""
    if not isinstance(given, str) or given not in tuple(LETTERS):
        raise Fault(f"is wrong for {devices} devices.", f"expected one of the letters {', '.join(LETTERS)}, given "
                    f"{repr(given) if isinstance(given, str) else kind(given)}")  # fmt: skip
    if given != right:
        sent = sent_by_line(devices)
        raise Fault(f"is wrong for {devices} devices.", f"line {given} sends {sent[given]:,} bytes in all, another one "
                    f"sends {sent[right]:,}")  # fmt: skip


@planning(
    oracle=busiest,
    judge=judge_line,
    cases=((2,), (4,), (8,), (9,), (16,)),
    praise="is right on 2, 4, 8, 9 and 16 devices.",
    slips={
        "the gradients are summed in a ring: however many devices, each sends at most twice their bytes. What grows "
        "with the number of devices?": lambda devices: "B",
        "on few devices the logits of all are little; their bytes grow with the number of devices.": (
            lambda devices: "C"
        ),
        "C gets ahead of B later than that. Put 8 into both formulas.": lambda devices: "B" if devices < 8 else "C",
        "C gets ahead of B earlier than that. Put 9 into both formulas.": lambda devices: "B" if devices <= 9 else "C",
        "the parameters are sent once, before the loop.": lambda devices: "A",
        "it is called often, but a loss is one number.": lambda devices: "D",
    },
    hints=(
        "Count what one device sends in a step: P is the number of devices, and a ring passes things on.",
        "B: 2(P-1)/P times the bytes of all gradients, 4 (32 * 100 + 100). C: P-1 times the bytes of the logits of one "
        "device, 4 * 8 * 100.",
        "C is more than B from P = 2 * 3300 / 800 on, which is 8.25. Or ask: "
        "print(reported(Cluster(16), script(greedy.__file__))).",
    ),
)
def sends_most(devices: int) -> str:
    """The letter of the line that sends most bytes, all devices together, when `greedy` runs on so many devices."""
    return "B" if devices <= 8 else "C"


# ---- a loop that hangs ----

LOSSES = {
    1: [[0.9, 0.7, 0.7, 0.5, 0.6]],  # as before is no rise
    2: [[0.9, 0.7, 0.5, 0.6, 0.4], [0.9, 0.8, 0.75, 0.6, 0.9]],
    3: [[0.9, 0.7, 0.8, 0.2, 0.1], [0.9, 0.8, 0.75, 0.6, 0.9], [0.8, 0.9, 0.6, 0.5, 0.4]],
    4: [[0.9, 1.0, 1.1, 1.2], [0.9, 0.3, 0.1, 0.0], [0.8, 0.7, 0.6, 0.5], [0.8, 0.7, 0.6, 0.5]],
}


def first_rise(losses: list[Tensor]) -> int:
    mean = torch.stack(losses).mean(0).tolist()
    rises = [epoch for epoch in range(1, len(mean)) if mean[epoch] > mean[epoch - 1]]
    return rises[0] if rises else len(mean)


def stops_alone(losses):
    before = float("inf")
    for epoch, loss in enumerate(losses):
        if loss > before:
            return epoch
        dist.barrier()  # stands for an epoch of training
        before = loss
    return len(losses)


def stops_when(
    agree: Callable[[Tensor], Tensor], rises: Callable[[Tensor, Any], Any] = operator.gt
) -> Callable[[Tensor], int]:
    def program(losses: Tensor) -> int:
        before = float("inf")
        for epoch, loss in enumerate(agree(losses)):
            if rises(loss, before):
                return epoch
            dist.barrier()
            before = loss
        return len(losses)

    return program


def reduced(x: Tensor, op: Any) -> Tensor:
    x = x.clone()
    dist.all_reduce(x, op=op)
    return x


def stops_for(agree: Callable[[Tensor], Tensor]) -> Callable[[Tensor], int]:
    """Each device looks at its own losses, and they agree on a flag: it is 1 where a device wants to stop."""

    def program(losses: Tensor) -> int:
        rises = torch.zeros_like(losses)
        rises[1:] = (losses[1:] > losses[:-1]).to(losses.dtype)
        stops = agree(rises).tolist()
        return stops.index(1.0) if 1.0 in stops else len(stops)

    return program


def of_rank_0(losses: Tensor) -> Tensor:
    losses = losses.clone()
    dist.broadcast(losses, src=0)
    return losses


def judge_epochs(given: list[Any], right: int, losses: list[Tensor]) -> None:
    """All devices stop, and after the right epoch."""
    on = f"is wrong for {counted(len(losses), 'device')}."
    for rank, epochs in enumerate(given):
        if isinstance(epochs, bool) or not isinstance(epochs, int | float):
            raise Fault(on, f"rank {rank} returned {kind(epochs)}; asked for is a number of epochs")
        if epochs != right:
            raise Fault(on, f"rank {rank} stopped after {epochs:g} epochs; by the mean of all devices it is {right}")


@simulated(
    oracle=first_rise,
    around=lambda program, losses: program(losses),
    judge=judge_epochs,
    cases=tuple(([torch.tensor(row, dtype=torch.float64) for row in rows],) for rows in LOSSES.values()),
    praise="is right on 1, 2, 3 and 4 devices: all stop together, after the same epoch.",
    broken=stops_alone,
    slips={
        "rank 0 decides for all: the losses of the others count as well.": stops_when(of_rank_0),
        "it stops where the mean loss is as before. Asked for is where it rises.": stops_when(
            lambda losses: reduced(losses, dist.ReduceOp.AVG), operator.ge
        ),
        "it stops at the worst device's loss. Asked for is the mean.": stops_when(
            lambda losses: reduced(losses, dist.ReduceOp.MAX)
        ),
        "it stops at the best device's loss. Asked for is the mean.": stops_when(
            lambda losses: reduced(losses, dist.ReduceOp.MIN)
        ),
        "it stops when the loss of any device rises. The mean of all may still fall.": stops_for(
            lambda rises: reduced(rises, dist.ReduceOp.MAX)
        ),
        "it stops when the losses of all devices rise. Their mean may rise before that.": stops_for(
            lambda rises: reduced(rises, dist.ReduceOp.MIN)
        ),
    },
    hints=(
        "The table says who waits at the barrier, and who has ended. What did the ones that ended know that the others "
        "did not?",
        "A device may leave a loop with collectives in it only when all leave. So all must decide by the same number.",
        "In every epoch, on every device and before the if: loss = loss.clone(); dist.all_reduce(loss, "
        "op=dist.ReduceOp.AVG).",
    ),
)
def stops_together(losses):
    """How many epochs are trained until the mean loss of all devices rises for the first time.

    `losses` (epochs,) float64 are those that this device measures, one before each epoch. An epoch is trained where its
    loss has not risen, so the number is that of the barriers.
    """
    before = float("inf")
    for epoch, loss in enumerate(losses):
        loss = loss.clone()
        dist.all_reduce(loss, op=dist.ReduceOp.AVG)  # all devices decide by the same number
        if loss > before:
            return epoch
        dist.barrier()  # stands for an epoch of training
        before = loss
    return len(losses)


# ---- a loss that does not depend on the number of devices ----


def numbers(rows: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 3, generator=random, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5]).double()


def go_back(loss: Any, weights: Tensor, program: Callable[[Tensor], Tensor]) -> None:
    """Calls backward() on what the reader's function returned. Raises Fault unless that comes to the weights."""
    on = f"{counted(dist.get_world_size(), 'device')}."
    if loss is ... or loss is None and unfinished(program):
        raise NotImplementedError
    if loss is None:
        raise Fault(f"returns None for {on}", "Cause: is a return missing?")
    if not isinstance(loss, Tensor) or oddness(loss) or loss.is_complex() or loss.numel() != 1:
        given = "a complex number" if isinstance(loss, Tensor) and loss.is_complex() else kind(loss)
        raise Fault(f"is wrong for {on}", f"it returned {given}; asked for is a tensor of one number, for "
                    "backward() is called on it")  # fmt: skip
    if loss.requires_grad:
        loss.backward()
    if weights.grad is None:
        raise Fault(f"is wrong for {on}", "the tensor that it returned is not connected with `losses` (by item(), "
                    "detach() or a new tensor?), so backward() finds no way to the weights")  # fmt: skip


def averaged(program: Callable[[Tensor], Tensor], rows: Tensor) -> list[float]:
    """What DDP does with the loss that the reader's function returns: the gradients' mean over the devices."""
    weights = numbers(len(rows))[1].requires_grad_()
    loss = program((rows @ weights).square())
    go_back(loss, weights, program)
    dist.all_reduce(weights.grad, op=dist.ReduceOp.AVG)
    return weights.grad.tolist()


def whole_gradient(pieces: list[Tensor]) -> Tensor:
    rows = torch.cat(pieces)
    weights = numbers(len(rows))[1].requires_grad_()
    (rows @ weights).square().mean().backward()
    return weights.grad


def judge_gradient(given: list[list[float]], right: Tensor, pieces: list[Tensor]) -> None:
    """The averaged gradient is that of one device, as precisely as a float32 number of samples allows."""
    apart = float((torch.tensor(given[0], dtype=right.dtype) - right).abs().max() / right.abs().max())
    if not apart < 1e-5:
        sizes = ", ".join(str(len(piece)) for piece in pieces)
        percent = f"{apart:.0%}" if apart > 0.01 else f"{100 * apart:.2g}%"
        raise Fault(f"is wrong for {counted(len(pieces), 'device')} with {sizes} samples.",
                    f"the gradient that DDP makes of it is off by {percent} of that of one device")  # fmt: skip


def cut_into(rows: int, sizes: tuple[int, ...]) -> list[Tensor]:
    return list(numbers(rows)[0].split(sizes))


def knowing_all_samples(scale: Callable[[Tensor, float, int], Tensor]) -> Callable[[Tensor], Tensor]:
    """Slips: from the losses, the number of all samples and of devices."""

    def program(losses: Tensor) -> Tensor:
        all_samples = torch.tensor(float(len(losses)))
        dist.all_reduce(all_samples)
        return scale(losses, all_samples.item(), dist.get_world_size())

    return program


@simulated(
    oracle=whole_gradient,
    around=averaged,
    judge=judge_gradient,
    cases=tuple((cut_into(sum(sizes), sizes),) for sizes in [(5,), (3, 2), (4, 4), (1, 6, 2), (5, 5, 4, 1)]),
    praise="is right on 1, 2, 3 and 4 devices, even and uneven: the gradient is that of one device.",
    slips={
        "a mean of each device's own samples, and DDP takes the mean of these means: who has few samples counts as "
        "much as who has many.": lambda losses: losses.mean(),
        "the sum over all samples is P times what DDP makes of it, and nobody has divided by their number.": (
            lambda losses: losses.sum()
        ),
        "DDP divides the sum of the gradients by P. You have divided by the number of all samples already, so multiply "
        "by P.": knowing_all_samples(lambda losses, samples, p: losses.sum() / samples),
        "multiply by P, where you have divided by it: DDP divides once more.": knowing_all_samples(
            lambda losses, samples, p: losses.sum() / samples / p
        ),
        "a mean is divided by the device's own samples already: take the sum.": knowing_all_samples(
            lambda losses, samples, p: losses.mean() * p / samples
        ),
    },
    hints=(
        "Write down what is asked for: the sum over all samples of all devices, divided by their number. What does DDP "
        "do to the gradients on the way?",
        "Each device knows its own number of samples. One number per device has to be summed.",
        "n = torch.tensor(float(len(losses))); dist.all_reduce(n); then losses.sum() / n, times "
        "dist.get_world_size(), because DDP divides by it.",
    ),
)
def loss_for_ddp(losses):
    """The loss of which DDP makes the gradient of the mean over ALL samples, whoever has how many.

    `losses` (samples,) float64 are those of this device's samples, one number each. Return one number to call
    backward() on. DDP averages the gradients of all devices.
    """
    samples = torch.tensor(float(len(losses)))
    dist.all_reduce(samples)  # of all devices
    return losses.sum() / samples * dist.get_world_size()
