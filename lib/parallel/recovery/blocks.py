"""What a device holds of a tensor that is laid out over many, as blocks of the whole: a start and a shape in each dim.

However a tensor was cut, along a dim, head by head, or flattened and then anywhere, each piece is a few such blocks. So
blocks are what a checkpoint is made of: they say nothing of the devices that wrote them, and any other number of
devices finds in them what it needs.

    whole (4, 6), Shard(1) over 2, then flattened and cut over 2 by ZeRO: the second half of the right half

        . . . . . .
        . . . . . .            one block: start (2, 3), shape (2, 3)
        . . . x x x
        . . . x x x
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from lib.parallel.sharding.placement import Placement


class Block(NamedTuple):
    """A part of a whole tensor: `start` and `shape` have one number per dim."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    def common(self, other: "Block") -> "Block | None":
        """What both have; None when that is nothing."""
        start = tuple(map(max, self.start, other.start))
        ends = (min(a + m, b + n) for a, m, b, n in zip(*self, *other, strict=True))
        shape = tuple(end - a for a, end in zip(start, ends, strict=True))
        return Block(start, shape) if all(n > 0 for n in shape) else None

    def inside(self, other: "Block") -> tuple[slice, ...]:
        """Where this block lies in a tensor that holds `other`."""
        return tuple(slice(a - b, a - b + n) for a, b, n in zip(self.start, other.start, self.shape, strict=True))


@dataclass(frozen=True, eq=False)
class Held:
    """What this device holds of the tensor `name`, which has the shape `whole`.

    `rows[d]` are the indices along dim d that this device has, in its own order; -1 is padding. `x` has those rows, or
    where `part` is not None, of them, flattened, the elements `part`.
    """

    name: str
    x: Tensor
    whole: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    part: range | None = None

    def blocks(self) -> list[tuple[Block, tuple[slice, ...]]]:
        """The blocks of the whole, each with its place among this device's rows."""
        found = []
        mine = tuple(map(len, self.rows))
        boxes = boxes_of(range(math.prod(mine)) if self.part is None else self.part, mine)
        runs = [list(_runs(indices)) for indices in self.rows]
        for box in boxes:
            for picked in product(*(_cut(run, s) for run, s in zip(runs, box, strict=True))):
                places = tuple(slice(first, first + length) for first, _, length in picked)
                block = Block(tuple(start for _, start, _ in picked), tuple(length for *_, length in picked))
                found.append((block, places))
        return found

    def rows_held(self) -> Tensor:
        """`x` among this device's rows; what `part` leaves out is zero."""
        if self.part is None:
            return self.x.detach()
        flat = self.x.new_zeros(math.prod(map(len, self.rows)))
        flat[self.part.start : self.part.stop] = self.x.detach()
        return flat.view(tuple(map(len, self.rows)))

    @torch.no_grad()
    def fill(self, rows: Tensor) -> None:
        """The reverse: `x` from a tensor of all rows."""
        mine = rows if self.part is None else rows.flatten()[self.part.start : self.part.stop]
        self.x.detach().copy_(mine)  # of a piece, the plain tensor


def rows_of(layout: Placement, whole: Sequence[int], mine: Sequence[int], parts: int, rank: int) -> tuple:
    """For each dim, the indices that device `rank` of `parts` has of a tensor of shape `whole`; -1 where it is padded.

    `mine` is the shape that it has. Whatever the layout, it says which rows these are: it is asked to cut their
    numbers.
    """
    rows = []
    for dim, (n, length) in enumerate(zip(whole, mine, strict=True)):
        if n == length:
            rows.append(tuple(range(n)))
            continue
        # From 1 on, so that 0 is padding. Dims that are not cut need no more than one index.
        shape = [1 if a == b else a for a, b in zip(whole, mine, strict=True)]
        numbers = torch.arange(1, n + 1).view([-1 if d == dim else 1 for d in range(len(whole))]).expand(shape)
        line = tuple(slice(None) if d == dim else slice(0, 1) for d in range(len(whole)))
        mine_of = layout.piece(numbers, parts, rank)[line].flatten().tolist()
        rows.append(tuple(i - 1 for i in mine_of) or (-1,) * length)  # or none at all, where another dim is empty
    return tuple(rows)


def boxes_of(part: range, shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """The elements `part` of a flattened tensor of `shape`, as boxes: the end of a row, whole rows, the beginning of
    one."""
    if not part:
        return []
    if not shape:
        return [()]
    each = math.prod(shape[1:])
    first, last = part.start // each, (part.stop - 1) // each

    def within(row: int, start: int, stop: int) -> list[tuple[slice, ...]]:
        return [(slice(row, row + 1), *rest) for rest in boxes_of(range(start, stop), shape[1:])]

    if first == last and len(part) < each:
        return within(first, part.start - first * each, part.stop - first * each)
    boxes = []
    if part.start % each:
        boxes += within(first, part.start % each, each)
        first += 1
    full = part.stop // each
    if full > first:
        boxes.append((slice(first, full), *(slice(0, n) for n in shape[1:])))
    if part.stop % each:
        boxes += within(full, 0, part.stop % each)
    return boxes


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(place, index, length) of each run of consecutive indices, without padding."""
    at = 0
    while at < len(indices):
        length = 1
        while at + length < len(indices) and indices[at + length] == indices[at] + length and indices[at] >= 0:
            length += 1
        if indices[at] >= 0:
            yield at, indices[at], length
        at += length


def _cut(runs: list[tuple[int, int, int]], part: slice) -> list[tuple[int, int, int]]:
    """The runs inside `part`."""
    found = []
    for place, index, length in runs:
        first, end = max(place, part.start), min(place + length, part.stop)
        if first < end:
            found.append((first, index + first - place, end - first))
    return found
