"""The exercises of the chapter "ZeRO and FSDP". Each function is a solution: read it after your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from book.exercises.check.cost import Talk
from book.exercises.check.counting import counting
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input
from lib.costs.zero import zero_volume
from lib.devices import Group
from lib.devices.collectives import AllGather, AllReduce, ReduceScatter
from lib.devices.pieces import cut
from lib.parallel.sharding.conjugates import all_gather, copy_to, gather_from, reduce_from, reduce_scatter
from lib.parallel.sharding.placement import Partial, Replicate, Shard
from lib.parallel.sharding.shards import shard


def momentum_step(w: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    m = 0.9 * m + g
    return w - 0.1 * m, m


def zero_with(
    take: Callable[[Group, Tensor], Tensor],
    momentum: Callable[[Tensor, Tensor], Tensor] = lambda m, g: 0.9 * m + g,
    step: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda m, g, old: m,
    sign: int = 1,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """The solution, with another way to one of its three lines."""

    def program(group: Group, w: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        g = take(group, g)
        new = momentum(m, g)
        return group.all_gather(shard(w, group, 0) - sign * 0.1 * step(new, g, m)), new

    return program


def summed_piece(group: Group, g: Tensor) -> Tensor:
    return group.reduce_scatter(g)


def on_the_piece_of(place: Callable[[int, int], int]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The solution, but the momentum moves another device's piece of w."""

    def program(group: Group, w: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        m = 0.9 * m + group.reduce_scatter(g)
        piece = cut(w, group.size, 0)[place(group.rank, group.size)]
        if len(piece) != len(m):
            raise ValueError("of another length: no message of PyTorch, which others would have alike")
        return group.all_gather(piece - 0.1 * m), m

    return program


def stepped_whole(group: Group, w: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    m = 0.9 * m + group.reduce_scatter(g)
    return w - 0.1 * m, m


def momentum_in_every_term(group: Group, w: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    m = group.reduce_scatter(g + 0.9 * group.all_gather(m))
    return group.all_gather(shard(w, group, 0) - 0.1 * m), m


def rate_in_momentum(group: Group, w: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    m = 0.9 * m - 0.1 * group.reduce_scatter(g)
    return group.all_gather(shard(w, group, 0) + m), m


@exercise(
    oracle=momentum_step,
    inputs={"w": Input("n"), "g": Input("n", Partial()), "m": Input("n", Shard(0))},
    returns={"the new w": Replicate(), "the new m": Shard(0)},
    forward=(Talk(ReduceScatter(0), "n"), Talk(AllGather(0), "n")),
    only=("reduce_scatter", "all_gather"),
    slips={
        "g is a term of the gradient, and the terms are added. Nothing is to be divided.": zero_with(
            lambda group, g: group.reduce_scatter(g) / group.size
        ),
        "this device's own term alone is in the step: the terms of the others were never added.": zero_with(
            lambda group, g: shard(g, group, 0)
        ),
        "w steps by the gradient; it is to step by the new momentum.": zero_with(
            summed_piece, step=lambda m, g, old: g
        ),
        "w steps by the old momentum; it is to step by the new one.": zero_with(
            summed_piece, step=lambda m, g, old: old
        ),
        "the momentum forgets nothing: it is 0.9 m + gradient.": zero_with(summed_piece, lambda m, g: m + g),
        "the momentum is 0.9 m + gradient, not 0.9 m + 0.1 gradient.": zero_with(
            summed_piece, lambda m, g: 0.9 * m + 0.1 * g
        ),
        "the step goes uphill: subtract.": zero_with(summed_piece, sign=-1),
        "the old momentum is forgotten: the new one is 0.9 m + gradient.": zero_with(summed_piece, lambda m, g: g),
        "w is whole, and the momentum is that of your piece. Step your piece of w, shard(w, group, 0), then gather.": (
            stepped_whole
        ),
        "the momentum of your piece moved the next device's piece of w.": on_the_piece_of(lambda r, p: (r + 1) % p),
        "the momentum of your piece moved the piece of w at the other end.": on_the_piece_of(lambda r, p: p - 1 - r),
        "the old momentum came into the sum over the devices, once from each: P times too much of it.": (
            momentum_in_every_term
        ),
        "the rate 0.1 belongs to the step of w; the momentum is 0.9 m + gradient.": rate_in_momentum,
        "the rate is missing: w becomes w - 0.1 m.": zero_with(summed_piece, step=lambda m, g, old: 10 * m),
        "this is Nesterov's step, one momentum further on. w becomes w - 0.1 m, with the new m.": zero_with(
            summed_piece, step=lambda m, g, old: g + 0.9 * m
        ),
    },
    mistakes={
        "this is the momentum as it was.": lambda parts, w, g, m: m,
        "this is the gradient of your piece. Its momentum is 0.9 m + gradient.": lambda parts, w, g, m: g,
        "this is what the step adds, and not w after it.": lambda parts, w, g, m: -0.1 * (0.9 * m + g),
        "this is what the step takes away, and not w after it.": lambda parts, w, g, m: 0.1 * (0.9 * m + g),
    },
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


def product(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


def gathered_again(group: Group, x: Tensor, w: Tensor) -> Tensor:
    """Nothing whole is kept for the backward, which runs the forward once more."""
    return checkpoint(lambda x, w: x @ all_gather(w, group, 0), x, w, use_reentrant=False, preserve_rng_state=False)


def tensor_parallel_rows(group: Group, x: Tensor, w: Tensor) -> Tensor:
    columns = shard(all_gather(x, group, 0), group, 1)
    return reduce_scatter(columns @ w, group, 0)


@exercise(
    oracle=product,
    inputs={"x": Input("batch in", Shard(0)), "w": Input("in out", Shard(0))},
    returns={"the result": Shard(0)},
    gradients=("x", "w"),
    forward=(Talk(AllGather(0), "in out"),),
    backward=(Talk(ReduceScatter(0), "in out"),),
    slips={
        "each device kept its rows of its own gradient of w, as gather_from does backward. But each used the whole w "
        "on other samples, so their terms must be added: all_gather(w, group, 0) reduce-scatters.": (
            lambda group, x, w: x @ gather_from(w, group, 0)
        ),
        "the gradient of the whole w was added up for everyone, and each device kept its rows of it. A reduce-scatter "
        "sends half of that.": lambda group, x, w: x @ copy_to(gather_from(w, group, 0), group),
        "w is gathered a second time, for the backward, so as not to keep it: memory paid with bytes, as stage 3 "
        "proper does. Here the bytes are limited: keep what was gathered.": gathered_again,
        "w was not gathered: your rows of w meet only as many columns of x.": lambda group, x, w: x @ w,
        "w was not gathered. Your rows alone, times the columns of x that belong to them, are a part of each sum.": (
            lambda group, x, w: shard(x, group, 1) @ w
        ),
        "terms of different samples were added: each device has other samples. Gather w, and nothing is to be added.": (
            lambda group, x, w: reduce_from(shard(x, group, 1) @ w, group)
        ),
        "w was gathered along its columns, dim 1. The devices have its rows, dim 0.": (
            lambda group, x, w: x @ all_gather(w, group, 1)
        ),
        "the gradient was added up, and then a mean was taken. A mean over samples belongs to the loss.": (
            lambda group, x, w: (
                x @ (all_gather(w / group.size, group, 0) + all_gather(w.detach(), group, 0) * (1 - 1 / group.size))
            )
        ),
        "the samples travel here, and the weight stays. That is tensor parallelism: gather w, and keep the samples.": (
            tensor_parallel_rows
        ),
    },
    refused={"x has a column more than w has rows": {"x": "batch in+1"}},
    hints=(
        "Your samples need all rows of w, and you have some. Who must get the gradient of your rows, and from whom?",
        "Gather w before its use. Every device then has a term of the gradient of all rows, from its own samples, and "
        "the owner of a row needs the sum of these terms.",
        "all_gather(w, group, 0) of lib.parallel gathers forward and reduce-scatters backward.",
    ),
)
def gather_and_use(group: Group, x: Tensor, w: Tensor) -> Tensor:
    """ZeRO stage 3 of one linear layer: x @ (the whole w), for this device's samples.

    x (batch/P, in) are this device's samples; w (in/P, out) are the rows that it owns. Return (batch/P, out), so that
    the gradients of x and of the own rows are right.
    """
    whole = all_gather(w, group, 0)  # (in, out)  Shard(0) -> Replicate; backward a reduce-scatter
    return x @ whole  # (batch/P, out)  Shard(0); whole is freed when nobody needs it any more


MOST = 4.0


class WithOneLarge(Input):
    """Random numbers; where there are many, one of them is above MOST: who clips each by itself is told apart."""

    def draw(self, lengths: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Random numbers in float64."""
        x = super().draw(lengths, random)
        if x.numel() > 20:
            x[-1, -1] = 1.5 * MOST
        return x


def clipped(g: Tensor) -> Tensor:
    return g * (MOST / g.norm()).clamp(max=1)


def clip_with(norm: Callable[[Group, Tensor], Tensor]) -> Callable[[Group, Tensor], Tensor]:
    return lambda group, g: g * (MOST / norm(group, g)).clamp(max=1)


def whole_norm(group: Group, g: Tensor) -> Tensor:
    return group.all_reduce(g.square().sum()).sqrt()


@exercise(
    oracle=clipped,
    inputs={"g": WithOneLarge("rows columns", Shard(0))},
    returns={"the clipped piece": Shard(0)},
    forward=(Talk(AllReduce(), ""),),
    limited=False,
    slips={
        "nothing was clipped. (A mean of squares is far below 4; the norm is the root of their sum.)": (
            lambda group, g: g
        ),
        "each device clipped by the norm of its own piece. Directions change, and no error is raised: ask for the norm "
        "of all pieces.": clip_with(lambda group, g: g.norm()),
        "norms were added. Squares add up, norms do not: all-reduce the sum of the squares, then take the root.": (
            clip_with(lambda group, g: group.all_reduce(g.norm()))
        ),
        "the largest norm of a piece is not the norm of all pieces: add the squares, then take the root.": (
            clip_with(lambda group, g: group.all_reduce(g.norm(), op="max"))
        ),
        "the mean of the squares, or of the norms, depends on the number of devices. Add the squares of all.": (
            clip_with(lambda group, g: (group.all_reduce(g.square().sum()) / group.size).sqrt())
        ),
        "this is the norm squared: take the root of the sum.": clip_with(
            lambda group, g: group.all_reduce(g.square().sum())
        ),
        "the root was taken before the sum over the devices, or twice.": clip_with(
            lambda group, g: group.all_reduce(g.norm()).sqrt()
        ),
        "a norm below 4 stays as it is: the factor is never above 1.": (
            lambda group, g: g * (MOST / whole_norm(group, g))
        ),
        "the root was taken nowhere: 16 / squares is the factor's square.": (
            lambda group, g: g * (MOST**2 / whole_norm(group, g) ** 2).clamp(max=1)
        ),
        "each device asks whether the norm of its own piece is above 4. That of all pieces decides, for all.": (
            lambda group, g: g * (MOST / whole_norm(group, g)) ** (g.norm() > MOST)
        ),
        "scaled to the norm 1: it is to be 4.": (
            lambda group, g: g / whole_norm(group, g) ** (whole_norm(group, g) > MOST)
        ),
        "it is the other way round: a norm above 4 is scaled down, one below stays. (clamp(max=1), not min.)": (
            lambda group, g: g * (MOST / whole_norm(group, g)).clamp(min=1)
        ),
        "the factor is upside down: 4 / norm.": lambda group, g: g * (whole_norm(group, g) / MOST).clamp(max=1),
        "this is a norm for each row; one for all elements was asked for.": (
            lambda group, g: g * (MOST / g.norm(dim=1, keepdim=True)).clamp(max=1)
        ),
        "this is a norm for each column; one for all elements was asked for.": (
            lambda group, g: g * (MOST / group.all_reduce(g.square().sum(0)).sqrt()).clamp(max=1)
        ),
        "|elements| were added: the norm is the root of the sum of their squares.": clip_with(
            lambda group, g: group.all_reduce(g.abs().sum())
        ),
        "the largest |element| is not the norm, which is the root of the sum of all squares.": clip_with(
            lambda group, g: group.all_reduce(g.abs().max(), op="max")
        ),
    },
    mistakes={
        "every element was clipped by itself. The whole gradient is scaled by one factor.": (
            lambda parts, g: g.clamp(-MOST, MOST)
        ),
        "the mean of the devices' norms is not the norm of all pieces: add the squares, then take the root.": (
            lambda parts, g: g * (MOST * parts / sum(piece.norm() for piece in cut(g, parts, 0))).clamp(max=1)
        ),
    },
    hints=(
        "The norm is the root of the sum of all squares. Of this sum you have the terms of your piece. What must the "
        "devices tell each other, and how long is it?",
        "group.all_reduce(g.square().sum()) is the square of the whole norm, the same on every device.",
        "factor = (4 / whole.sqrt()).clamp(max=1), then g * factor.",
    ),
)
def clip_pieces(group: Group, g: Tensor) -> Tensor:
    """The own piece of the gradient, scaled so that the norm of the WHOLE gradient is at most 4.

    g (rows/P, columns) is this device's piece. If the norm of all pieces together is below 4, nothing changes.
    """
    norm = group.all_reduce(g.square().sum()).sqrt()  # ()  Partial -> Replicate
    return g * (4 / norm).clamp(max=1)  # (rows/P, columns)  Shard(0)


def by_formula(parameters: int, devices: int, stage: int, micro_batches: int) -> tuple[int]:
    return (round(zero_volume(parameters, devices, stage, micro_batches)),)


def _sent(trips: int, parameters: int, devices: int) -> int:
    return trips * parameters * (devices - 1) // devices


@counting(
    oracle=by_formula,
    returns=("elements sent",),
    counted="the formula of lib/costs/zero.py says",
    cases=((4_000, 4, 1, 1), (4_000, 4, 1, 8), (8_000, 8, 2, 1), (8_000, 8, 2, 4), (6_000, 2, 3, 1), (6_000, 2, 3, 4)),
    slips={
        "elements sent": {
            "each trip round the ring moves (P-1)/P of the parameters: a device's own piece stays at home.": (
                lambda n, p, stage, m: {1: 2, 2: m + 1, 3: 3 * m}[stage] * n
            ),
            "the gathered weights are freed after the forward: the backward gathers them again.": (
                lambda n, p, stage, m: _sent({1: 2, 2: m + 1, 3: 2 * m}[stage], n, p)
            ),
            "stage 3 gathers and reduces in every micro-batch.": (
                lambda n, p, stage, m: _sent({1: 2, 2: m + 1, 3: 3}[stage], n, p)
            ),
            "stage 2 frees the whole gradients in every micro-batch, so they travel in every one.": (
                lambda n, p, stage, m: _sent({1: 2, 2: 2, 3: 3 * m}[stage], n, p)
            ),
            "the weights of stage 2 are gathered once a step; only its gradients travel in every micro-batch.": (
                lambda n, p, stage, m: _sent({1: 2, 2: 2 * m, 3: 3 * m}[stage], n, p)
            ),
            "stage 1 keeps whole gradients, adds up over the micro-batches, and sends once.": (
                lambda n, p, stage, m: _sent({1: 2 * m, 2: m + 1, 3: 3 * m}[stage], n, p)
            ),
            "stage 1 reduce-scatters gradients AND all-gathers what was stepped.": (
                lambda n, p, stage, m: _sent({1: 1, 2: m + 1, 3: 3 * m}[stage], n, p)
            ),
            "stage 3 gathers twice in every micro-batch, and reduces once.": (
                lambda n, p, stage, m: _sent({1: 2, 2: m + 1, 3: 2 + m}[stage], n, p)
            ),
            "stage 3 gathers twice in every micro-batch: nothing of the whole weights is kept.": (
                lambda n, p, stage, m: _sent({1: 2, 2: m + 1, 3: 2 * m + 1}[stage], n, p)
            ),
            "parameters // devices is one piece; P-1 pieces travel in each trip.": (
                lambda n, p, stage, m: {1: 2, 2: m + 1, 3: 3 * m}[stage] * n // p
            ),
            "gradients of stage 1 travel once a step, not in every micro-batch.": (
                lambda n, p, stage, m: _sent({1: m + 1, 2: m + 1, 3: 3 * m}[stage], n, p)
            ),
            "these are bytes: elements were asked for.": (
                lambda n, p, stage, m: 2 * _sent({1: 2, 2: m + 1, 3: 3 * m}[stage], n, p)
            ),
        }
    },
    hints=(
        "One trip round the ring, an all-gather or a reduce-scatter, moves (P-1)/P of all parameters. How many trips "
        "does each stage make in one step, and how many of them in every micro-batch?",
        "Stage 1: gradients once, weights once. Stage 2: gradients in every micro-batch, weights once. Stage 3: two "
        "gathers and a reduce-scatter in every micro-batch.",
        "trips = {1: 2, 2: micro_batches + 1, 3: 3 * micro_batches}[stage]",
    ),
)
def elements_sent(parameters: int, devices: int, stage: int, micro_batches: int) -> int:
    """How many elements each device sends in one optimizer step, at stage 1, 2 or 3 of ZeRO.

    One step adds up the gradients of `micro_batches` micro-batches.
    """
    trips = {1: 2, 2: micro_batches + 1, 3: 3 * micro_batches}[stage]
    return trips * parameters * (devices - 1) // devices
