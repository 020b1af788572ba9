"""From a tensor and a placement to who holds what: the facts a picture is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any

from lib.parallel.sharding.shards import shard_sizes

Values = list[list[str]]


def shape_text(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def indexed(name: str, rank: int) -> str:
    """`indexed("W", 12)` is "W₁₂": the part of `name` that device 12 holds."""
    return name + str(rank).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def stretch(word: str, numbers: Sequence[int]) -> str:
    """Consecutive numbers of things: "heads 0 to 3", or "head 2" of one alone."""
    return f"{word} {numbers[0]}" if len(numbers) == 1 else f"{word}s {numbers[0]} to {numbers[-1]}"


def shape_of(tensor: Any) -> tuple[int, ...]:
    """The shape of a torch tensor or NumPy array; a list or tuple of integers is a shape already.

    Errors: TypeError for anything else, ValueError for a negative length.
    """
    shape = getattr(tensor, "shape", tensor)
    if not isinstance(shape, Sequence) or not all(isinstance(n, int) and not isinstance(n, bool) for n in shape):
        raise TypeError(f"expected a tensor or a shape such as (4, 6), got {tensor!r}")
    if not shape or min(shape) < 0:
        raise ValueError(f"cannot draw the shape {shape_text(shape)}: it needs one length or more, none negative")
    return tuple(shape)


def values_of(tensor: Any, most: int = 8) -> Values | None:
    """The numbers of a small 1-D or 2-D tensor as text, row by row; None if there are none or too many to
    read."""
    if not hasattr(tensor, "tolist") or not 1 <= len(tensor.shape) <= 2 or max(tensor.shape) > most:
        return None
    if getattr(tensor, "is_meta", False):
        return None
    rows = tensor.tolist() if len(tensor.shape) == 2 else [tensor.tolist()]
    return [[f"{value or 0:.3g}" for value in row] for row in rows]  # not "-0"


def pieces(length: int, parts: int) -> list[tuple[int, int]]:
    """Where each part of a dimension starts and stops: the book's one split rule."""
    stops = list(accumulate(shard_sizes(length, parts)))
    return list(zip([0, *stops], stops, strict=False))


def check_devices(devices: int, most: int = 64) -> int:
    """`devices` if a picture can show that many. Errors: TypeError if not an integer, ValueError out of
    1..most."""
    if not isinstance(devices, int) or isinstance(devices, bool):
        raise TypeError(f"devices must be an integer, got {devices!r}")
    if not 1 <= devices <= most:
        raise ValueError(f"a picture shows 1 to {most} devices, got devices={devices}")
    return devices


def holdings(shapes: Sequence[Sequence[int]], numbers: Sequence[Values | None] | None = None) -> str:
    """One clause on which rank holds which shape: "rank 0 holds [4, 2]; ranks 1 to 3 hold [4, 1] each". With the
    `numbers` that each rank shows, also between which they lie: "rank 0 holds [4, 2], from 0 to 7"."""
    clauses, rank = [], 0
    spans = map(_span, numbers or [None] * len(shapes))
    for (shape, span), run in groupby(zip(map(shape_text, shapes), spans, strict=True)):
        n = len(list(run))
        if n == 1:
            clauses.append(f"rank {rank} holds {shape}{span}")
        else:
            clauses.append(f"ranks {rank} {'and' if n == 2 else 'to'} {rank + n - 1} hold {shape} each{span}")
        rank += n
    return "; ".join(clauses)


def _span(numbers: Values | None) -> str:
    every = sorted((value for row in numbers or () for value in row), key=float)
    if not every:
        return ""
    return f", from {every[0]} to {every[-1]}" if every[0] != every[-1] else f", all {every[0]}"
