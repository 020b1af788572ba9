"""Where a tensor is: the three placements of a tensor over a group, named as in PyTorch's DTensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.devices.pieces import cut


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


Placement = Shard | Replicate | Partial
