"""The exercises of the chapter "Devices that talk". Each function is a solution: read it after your own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input, OnRank0
from lib.devices import Group
from lib.devices.collectives import AllGather, AllReduce, ReduceScatter
from lib.devices.pieces import cut
from lib.devices.rooted import Broadcast
from lib.parallel.sharding.placement import Partial, Replicate, Shard
from lib.parallel.sharding.shards import shard


def same(x: Tensor) -> Tensor:
    return x


@exercise(
    oracle=same,
    inputs={"x": Input("rows columns", Partial())},
    returns={"the sum": Replicate()},
    forward=(Talk(ReduceScatter(0), "rows columns"), Talk(AllGather(0), "rows columns")),
    only=("reduce_scatter", "all_gather"),
    slips={
        "the pieces were gathered, but not the finished ones: each device gathered its piece of its own term.": (
            lambda group, x: group.all_gather(shard(x, group, 0))
        ),
        "the terms were gathered whole, and each device added them up: P-1 tensors travel in place of 2(P-1)/P.": (
            lambda group, x: sum(cut(group.all_gather(x), group.size, 0))
        ),
        "this is the largest of the terms, not their sum.": lambda group, x: group.all_gather(
            group.reduce_scatter(x, op="max")
        ),
    },
    hints=(
        "Look at the map of the placements: from Partial to Replicate there is a way with a stop at Shard.",
        "group.reduce_scatter(x, dim) leaves each device one finished piece of the sum. What is missing then?",
        "group.all_gather(piece, dim) puts the pieces together, along the dim that they were cut along.",
    ),
)
def all_reduce_in_two(group: Group, x: Tensor) -> Tensor:
    """The sum of all devices' x, whole on every device, without all_reduce.

    x (rows, columns) is this device's own term of the sum. Two verbs, and the bytes of one ring all-reduce.
    """
    piece = group.reduce_scatter(x, dim=0)  # (rows/P, columns)  Partial -> Shard(0)
    return group.all_gather(piece, dim=0)  # (rows, columns)    Shard(0) -> Replicate


@exercise(
    oracle=same,
    inputs={"x": Input("rows columns", Shard(0))},
    returns={"the result": Replicate()},
    forward=(Talk(AllGather(0), "rows columns"),),
    only=("send", "recv"),
    ring=True,
    hints=(
        "In each of P-1 steps, send one piece to the next device and receive one from the device behind. Which piece "
        "do you send first? Which one next?",
        "Send your own piece first. Then always pass on what came last: after P-1 steps all have been everywhere.",
        "What arrives in step s started at the device s+1 places behind: rank (r - s - 1) % P. Keep the pieces in a "
        "list by that rank, and torch.cat it at the end.",
    ),
)
def ring_all_gather(group: Group, x: Tensor) -> Tensor:
    """The pieces of all devices, joined along dim 0 in rank order, on every device; with send and recv only.

    x (rows/P, columns) is this device's piece. Round the ring: a device sends to its neighbors only, and no more than
    (P-1)/P of the result.
    """
    ahead, behind = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    pieces = [x] * group.size
    for step in range(group.size - 1):
        group.send(pieces[(group.rank - step) % group.size], ahead)
        pieces[(group.rank - step - 1) % group.size] = group.recv(behind)
    return torch.cat(pieces)  # (rows, columns)  Replicate


def passed_on(
    keep: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Group, Tensor], Tensor]:
    """The tree, where a device makes `keep(own, received)` of what it receives."""

    def program(group: Group, x: Tensor) -> Tensor:
        distance = 1
        while distance < group.size:
            if group.rank < distance and group.rank + distance < group.size:
                group.send(x, group.rank + distance)
            if distance <= group.rank < 2 * distance:
                x = keep(x, group.recv(group.rank - distance))
            distance *= 2
        return x

    return program


def told_too_early(group: Group, x: Tensor) -> Tensor:
    """A tree from its leaves on: pairs of neighbors first."""
    distance = 1
    while distance < group.size:
        if group.rank % (2 * distance) == distance:
            x = group.recv(group.rank - distance)
        elif group.rank % (2 * distance) == 0 and group.rank + distance < group.size:
            group.send(x, group.rank + distance)
        distance *= 2
    return x


@exercise(
    oracle=same,
    inputs={"x": Input("rows columns", OnRank0())},
    returns={"the result": Replicate()},
    forward=(Talk(Broadcast(0), "rows columns"),),
    only=("send", "recv"),
    limited=False,
    steps=lambda parts: math.ceil(math.log2(parts)),
    slips={
        "the others still have their own x: nothing was sent to them, or what arrived was not used.": passed_on(
            lambda own, received: own
        ),
        "some devices passed on their own x before they had received the right one: in step s only ranks below 2^s "
        "know it.": told_too_early,
        "what arrived was added to the own x. It takes its place.": passed_on(lambda own, received: own + received),
    },
    devices=(1, 2, 3, 4, 5, 8),
    hints=(
        "In the first step rank 0 tells one other device. In the second step two devices know it. How many can they "
        "tell at the same time?",
        "After step s, ranks 0 to 2^s - 1 know it. In the next step each of them sends to the rank 2^s further on, if "
        "there is one.",
        "distance = 1, 2, 4, ...: who has rank < distance sends to rank + distance; who has distance <= rank < 2 * "
        "distance receives from rank - distance.",
    ),
)
def tree_broadcast(group: Group, x: Tensor) -> Tensor:
    """The x of rank 0 on every device, with send and recv, in ceil(log2 P) steps.

    x (rows, columns) is the right one on rank 0; the others hold something else of the same shape.
    """
    distance = 1
    while distance < group.size:
        if group.rank < distance and group.rank + distance < group.size:
            group.send(x, group.rank + distance)
        if distance <= group.rank < 2 * distance:
            x = group.recv(group.rank - distance)
        distance *= 2
    return x  # (rows, columns)  Replicate


def scaled_down(x: Tensor) -> Tensor:
    largest = x.abs().max()
    return x / largest if largest > 2.5 else x


def divided(x: Tensor, largest: Tensor) -> Tensor:
    return x / largest if largest > 2.5 else x


def x_after_all(group: Group, x: Tensor) -> Tensor:
    group.all_reduce(x.abs().max(), op="max")
    return x


def normalize_that_stops(group: Group, x: Tensor) -> Tensor:
    largest = x.abs().max()
    if largest > 2.5:
        x = x / group.all_reduce(largest, op="max")
    return x


@exercise(
    oracle=scaled_down,
    inputs={"x": Input("rows columns", Shard(0))},
    returns={"the result": Shard(0)},
    forward=(Talk(AllReduce("max"), ""),),
    limited=False,
    broken=normalize_that_stops,
    slips={
        "the largest element is not the largest |element|: -3 counts as 3.": lambda group, x: divided(
            x, group.all_reduce(x.max(), op="max")
        ),
        "each device asks whether its own largest is above 2.5. That of all devices decides, for all.": (
            lambda group, x: (
                x / group.all_reduce(x.abs().max(), op="max") if x.abs().max() > 2.5 else x_after_all(group, x)
            )
        ),
    },
    mistakes={
        "every device divides by the largest |element| of its own piece.": lambda parts, x: torch.cat(
            [scaled_down(piece) for piece in cut(x, parts, 0)]
        ),
        "it is divided always, also when the largest |element| is below 2.5.": lambda parts, x: x / x.abs().max(),
        "the largest |elements| of all devices were added up: all_reduce adds unless it is told op='max'.": (
            lambda parts, x: divided(x, sum(piece.abs().max() for piece in cut(x, parts, 0)))
        ),
        "each column was divided by its own largest |element|. One number decides, for all.": lambda parts, x: (
            torch.where(x.abs().amax(0) > 2.5, x / x.abs().amax(0), x)
        ),
        "it is never divided.": lambda parts, x: x,
        "it is the other way round: above 2.5 it is divided, else it stays.": (
            lambda parts, x: x if x.abs().max() > 2.5 else x / x.abs().max()
        ),
        "too large elements were cut off at 2.5. All are divided, by the largest |element|.": (
            lambda parts, x: x.clamp(-2.5, 2.5)
        ),
        "2.5 decides whether to divide; divided is by the largest |element|.": lambda parts, x: (
            divided(x, x.abs().max()) / (2.5 / x.abs().max() if x.abs().max() > 2.5 else 1)
        ),
        "the smallest of the devices' largest |elements| was taken: op='max'.": lambda parts, x: divided(
            x, min(piece.abs().max() for piece in cut(x, parts, 0))
        ),
        "the mean of the devices' largest |elements| was taken: op='max', and no division.": lambda parts, x: divided(
            x, sum(piece.abs().max() for piece in cut(x, parts, 0)) / parts
        ),
        "the norm is not the largest |element|.": lambda parts, x: divided(x, x.norm()),
    },
    hints=(
        "The table says which devices wait, and in which line. What have the others done instead of coming there?",
        "largest is another number on every device, so some take the if and some do not. A collective must be called "
        "by all of them, or by none.",
        "Let all devices agree on the largest |element| first, by one all_reduce outside of the if. Then decide.",
    ),
)
def normalize(group: Group, x: Tensor) -> Tensor:
    """x divided by the largest |element| of all devices, if that is above 2.5; else x as it is.

    x (rows/P, columns) is this device's piece, and so is the result.
    """
    largest = group.all_reduce(x.abs().max(), op="max")  # ()  Replicate
    return x / largest if largest > 2.5 else x  # (rows/P, columns)  Shard(0)
