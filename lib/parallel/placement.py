"""Where a tensor is: the three placements of a tensor over a group, named as in PyTorch's DTensor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """Each device holds one piece, cut along `dim` by `shard_sizes`. Together the pieces are the tensor."""

    dim: int


@dataclass(frozen=True)
class Replicate:
    """Each device holds the whole tensor, the same on all."""


@dataclass(frozen=True)
class Partial:
    """Each device holds a tensor of the full shape; only their sum over the devices (or max, min) is the tensor."""

    op: str = "sum"


Placement = Shard | Replicate | Partial
