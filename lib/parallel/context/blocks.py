"""What some queries may see of some keys, as a short list of rectangles and triangles.

A device has the queries at some positions and, for the moment, the keys at some others. Under a causal mask much of the
square between them is empty. `blocks_between` lists what is not: data that is computed, counted and drawn.
"""

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from lib.parallel.context.cut import Places


@dataclass(frozen=True)
class Block:
    """The queries in rows `queries` see keys in rows `keys`: "all" of them; or as in a "triangle", the first query the
    first key and each next one key more; or where a mask (queries, keys) says so."""

    queries: slice
    keys: slice
    seen: Literal["all", "triangle"] | Tensor

    @property
    def pairs(self) -> int:
        """How many (query, key) pairs are seen: the work of this block."""
        rows, columns = self.queries.stop - self.queries.start, self.keys.stop - self.keys.start
        if isinstance(self.seen, Tensor):
            return int(self.seen.sum())
        if self.seen == "all":
            return rows * columns
        steps = min(rows, columns)
        return steps * (steps + 1) // 2 + (rows - steps) * columns


def blocks_between(
    queries: Places, keys: Places, causal: bool = True, documents: Tensor | None = None
) -> tuple[Block, ...]:
    """What queries at these positions see of keys at those, in the order of the queries' rows.

    Causal: what is not later. With `documents` (S,), the number of the document that each position belongs to: what is
    in the same document. Positions must ascend.
    """
    if causal and documents is None and queries == keys:  # both ascend, so the triangle of the rows is the right one
        rows = slice(0, sum(map(len, queries)))
        return (Block(rows, rows, "triangle"),)
    found: list[Block] = []
    for at, first in _with_rows(queries):
        for to, begin in _with_rows(keys):
            block = _between(at, to, causal, documents)
            if block is not None:
                _append(found, replace(block, queries=_moved(block.queries, first), keys=_moved(block.keys, begin)))
    merged: list[Block] = []
    for block in found:
        _append(merged, block)
    return tuple(merged)


def _between(at: range, to: range, causal: bool, documents: Tensor | None) -> Block | None:
    rows, columns = slice(0, len(at)), slice(0, len(to))
    if documents is not None:
        here, there = (documents[part.start : part.stop : part.step] for part in (at, to))
        if int(here.max()) < int(there.min()) or int(there.max()) < int(here.min()):
            return None
        if int(min(here.min(), there.min())) < int(max(here.max(), there.max())):  # not one document alone
            seen = here[:, None] == there[None, :]
            if causal:
                seen = seen & (torch.tensor(at)[:, None] >= torch.tensor(to)[None, :])
            return Block(rows, columns, seen) if bool(seen.any()) else None
    if not causal or to[-1] <= at[0]:
        return Block(rows, columns, "all")
    if at[-1] < to[0]:
        return None
    if at.step == to.step and -at.step < at[0] - to[0] < at.step:
        # Stripes. Row i sees column i where the keys' stripe is not later than ours, else only column i - 1.
        late = at[0] < to[0]
        block = Block(slice(late, len(at)), slice(0, min(len(to), len(at) - late)), "triangle")
        return block if block.pairs else None
    return Block(rows, columns, torch.tensor(at)[:, None] >= torch.tensor(to)[None, :])


def _append(found: list[Block], block: Block) -> None:
    """One kernel in the place of two, where one rectangle stands beside the other."""
    last = found[-1] if found else None
    if last is not None and last.seen is block.seen == "all":
        if last.queries == block.queries and last.keys.stop == block.keys.start:
            found[-1] = replace(last, keys=slice(last.keys.start, block.keys.stop))
            return
        if last.keys == block.keys and last.queries.stop == block.queries.start:
            found[-1] = replace(last, queries=slice(last.queries.start, block.queries.stop))
            return
    found.append(block)


def _with_rows(piece: Places) -> list[tuple[range, int]]:
    return list(zip(piece, accumulate(map(len, piece), initial=0), strict=False))


def _moved(rows: slice, by: int) -> slice:
    return slice(rows.start + by, rows.stop + by)
