"""Which tokens of a sequence each device holds: four ways to cut, and what they are as a placement.

    contiguous   device r has one stretch                        0 1 2 3 | 4 5 6 7
    striped      device r has every P-th token, from r on        0 2 4 6 | 1 3 5 7
    zigzag       of 2P stretches, device r has r and 2P - 1 - r  0 1 6 7 | 2 3 4 5
    (4, 4)       each document of these lengths, in zigzag       0 3 5 6 | 1 2 4 7

Under a causal mask a late token looks at more keys than an early one. The first way gives all late tokens to the last
devices; the next two give everyone early and late ones. With documents packed into one sequence, what counts is how
late a token is in its document: so each is cut by itself. Striped: Brandon et al. 2023, arXiv 2311.09431; zigzag: Llama
Team 2024, arXiv 2407.21783, section 3.3.2.

Positions are told as ranges: no tensor is needed to know who sees what, so it is known on the meta device too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from lib.devices.pieces import shard_sizes

Name = Literal["contiguous", "striped", "zigzag"]
Order = Name | tuple[int, ...]  # or the lengths of the documents
Places = tuple[range, ...]  # the positions of the rows that a device holds, in the order of the rows


def token_places(length: int, parts: int, rank: int, order: Order = "zigzag", inner: int = 1) -> Places:
    """The positions of the tokens that device `rank` of `parts` holds of a sequence of `length`, in ascending order.

    With `inner` above 1, the sequence is cut in that way over parts / inner rings, and each piece once more into
    `inner` stretches of rows, which neighbors hold. Raises ValueError when there are fewer tokens than devices, or the
    documents of `order` are not `length` tokens long.
    """
    if isinstance(order, tuple):
        if min(order, default=0) < 1 or sum(order) != length:
            raise ValueError(
                f"order={order}: documents of these lengths have {sum(order)} tokens; each must have one or more, and "
                f"all together the {length} of the sequence"
            )
    elif order not in get_args(Name):
        raise ValueError(
            f"order={order!r} must be one of {', '.join(map(repr, get_args(Name)))}, or the lengths of the documents"
        )
    if parts % inner:
        raise ValueError(f"{parts} devices cannot be laid out in rows of {inner}: it must divide {parts}")
    if length < parts:
        raise ValueError(f"a sequence of {length} tokens cannot be cut over {parts} devices: each needs at least one")
    ring, column = divmod(rank, inner)
    piece = _places(length, parts // inner, ring, order)
    begin, end = _bounds(sum(map(len, piece)), inner)[column]
    return _rows(piece, begin, end)


def _places(length: int, parts: int, rank: int, order: Order) -> Places:
    if order == "striped":
        return (range(rank, length, parts),)
    if order == "contiguous":
        return (range(*_bounds(length, parts)[rank]),)
    if isinstance(order, tuple):
        return _documents(order, parts, rank)
    stretches = _bounds(length, 2 * parts)
    return tuple(range(*stretches[i]) for i in (rank, 2 * parts - 1 - rank) if stretches[i][0] < stretches[i][1])


def _documents(lengths: tuple[int, ...], parts: int, rank: int) -> Places:
    """Zigzag in each document. Stretches that are one token longer come first, so who has them changes in turn."""
    found, start, turn = [], 0, 0
    for length in lengths:
        inside = _places(length, parts, (rank - turn) % parts, "zigzag")
        found += [range(start + part.start, start + part.stop) for part in inside]
        start, turn = start + length, (turn + length) % parts
    return tuple(found)


def _bounds(length: int, parts: int) -> list[tuple[int, int]]:
    """Where each piece begins and ends, by the book's one rule."""
    return list(pairwise(accumulate(shard_sizes(length, parts), initial=0)))


def _rows(piece: Places, begin: int, end: int) -> Places:
    """The positions of the rows from `begin` to `end` of a piece."""
    starts = accumulate(map(len, piece), initial=0)
    parts = (part[max(begin - first, 0) : max(end - first, 0)] for part, first in zip(piece, starts, strict=False))
    return tuple(part for part in parts if part)


def take(x: Tensor, piece: Places, dim: int) -> Tensor:
    """The slices of `x` at these positions along `dim`, one after the other."""
    index = (slice(None),) * (dim % x.ndim)
    return torch.cat([x[(*index, slice(part.start, part.stop, part.step))] for part in piece], dim)


@dataclass(frozen=True)
class CutTokens:
    """A placement: each device holds the tokens of `token_places` along `dim`. Contiguous, it is `Shard(dim)`."""

    order: Order = "zigzag"
    dim: int = 1
    inner: int = 1

    def piece(self, whole: Tensor, parts: int, rank: int) -> Tensor:
        """What device `rank` of `parts` holds of `whole`."""
        return take(whole, token_places(whole.shape[self.dim], parts, rank, self.order, self.inner), self.dim)

    def whole(self, pieces: Sequence[Tensor]) -> Tensor:
        """The tensor that `pieces`, in rank order, are the pieces of."""
        length, parts = sum(piece.shape[self.dim] for piece in pieces), len(pieces)
        each = [token_places(length, parts, rank, self.order, self.inner) for rank in range(parts)]
        rows = torch.tensor([i for piece in each for part in piece for i in part], device=pieces[0].device).argsort()
        return torch.cat(list(pieces), self.dim).index_select(self.dim, rows)
