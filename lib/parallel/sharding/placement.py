"""Where a tensor is: its placement over a group, named as in PyTorch's DTensor.

`Shard` and `Replicate` say who holds what, so a weight can be cut by them and put together again: they are placements.
So is everything else that can `piece` and `whole`, such as the fused heads of attention. A `Partial` is not: which
summand a device holds, no rule can say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lib.devices.pieces import cut


@runtime_checkable
class Placement(Protocol):
    """How a tensor is laid out over the devices of a group."""

    def piece(self, whole: Tensor, parts: int, rank: int) -> Tensor:
        """What device `rank` of `parts` holds of `whole`."""

    def whole(self, pieces: Sequence[Tensor]) -> Tensor:
        """The tensor that `pieces`, in rank order, are the pieces of."""


@dataclass(frozen=True)
class Shard:
    """Each device holds one piece, cut along `dim` by `shard_sizes`. Together the pieces are the tensor."""

    dim: int

    def piece(self, whole: Tensor, parts: int, rank: int) -> Tensor:
        """What device `rank` of `parts` holds of `whole`: a view."""
        return cut(whole, parts, self.dim)[rank]

    def whole(self, pieces: Sequence[Tensor]) -> Tensor:
        """The tensor that `pieces`, in rank order, are the pieces of."""
        return torch.cat(list(pieces), self.dim)


@dataclass(frozen=True)
class ShardBlocks:
    """Shard(0) of each of `blocks` equal blocks that lie one after the other in one tensor, such as [gate | up].

    Cut as one tensor, the first device would get nothing but the gate, and the last nothing but the other block.
    """

    blocks: int

    def piece(self, whole: Tensor, parts: int, rank: int) -> Tensor:
        """What device `rank` of `parts` holds of `whole`. ValueError when it is not made of so many equal blocks."""
        if len(whole) % self.blocks:
            raise ValueError(f"a tensor of shape {tuple(whole.shape)} is not made of {self.blocks} equal blocks")
        return torch.cat([cut(block, parts, 0)[rank] for block in whole.chunk(self.blocks)])

    def whole(self, pieces: Sequence[Tensor]) -> Tensor:
        """The tensor that `pieces`, in rank order, are the pieces of."""
        each = [piece.chunk(self.blocks) for piece in pieces if len(piece)]  # of an empty piece there are no blocks
        return torch.cat([torch.cat(block) for block in zip(*each, strict=True)])


@dataclass(frozen=True)
class Replicate:
    """Each device holds the whole tensor, the same on all."""

    def piece(self, whole: Tensor, parts: int, rank: int) -> Tensor:
        """What device `rank` of `parts` holds of `whole`: all of it."""
        return whole

    def whole(self, pieces: Sequence[Tensor]) -> Tensor:
        """Any of the pieces: they are the same."""
        return pieces[0]


@dataclass(frozen=True)
class Partial:
    """Each device holds a tensor of the full shape; only their sum over the devices (or max, min) is the tensor."""

    op: str = "sum"
