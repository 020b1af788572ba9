"""Cutting a tensor into shards, and putting shards together again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.devices import Group
from lib.devices.pieces import cut, shard_sizes
from lib.parallel.sharding.named import named

__all__ = ["shard", "shard_sizes", "unshard"]


@named
def shard(x: Tensor, group: Group, dim: int) -> Tensor:
    """This device's piece of `x` along `dim`: a view, no copy. Replicate -> Shard(dim), and it costs nothing.

    The sizes are those of `shard_sizes`: the first `length % size` devices get one more. A piece may be empty.
    """
    check_member(group, "shard")
    _check_dim(x, dim, f"shard on rank {group.rank}")
    return cut(x, group.size, dim)[group.rank]


def unshard(shards: Sequence[Tensor], dim: int) -> Tensor:
    """The tensor that `shards`, in rank order, are the pieces of. For looking at results outside of a program;
    inside one, `group.all_gather` does this with communication.

    Raises ValueError when the pieces do not have the sizes that `shard` would have cut.
    """
    if isinstance(shards, Tensor):
        raise TypeError("unshard needs the list of all pieces in rank order, not one tensor")
    if not shards:
        raise ValueError("unshard: there are no shards; pass the list of all pieces in rank order")
    _check_dim(shards[0], dim, "unshard")
    sizes = [x.shape[dim] for x in shards]
    expected = shard_sizes(sum(sizes), len(sizes))
    if sizes != expected:
        raise ValueError(
            f"unshard: {len(sizes)} shards of {sum(sizes)} along dim {dim} have sizes {expected}, not {sizes}. "
            "Are they in rank order, and is this the dim they were cut along?"
        )
    return torch.cat(list(shards), dim)


def gather_pieces(x: Tensor, group: Group, dim: int, name: str) -> Tensor:
    """The all-gather of pieces that were cut by the rule; ValueError, naming the rank, when they were not."""
    whole = group.all_gather(x, dim)
    check_rule(x.shape[dim], whole.shape[dim], group, dim, name)
    return whole


def check_rule(mine: int, whole: int, group: Group, dim: int, name: str) -> None:
    """Raises ValueError unless this device brought as much of the whole as `shard` would cut for it.

    A backward cuts the gradient by that rule: were the pieces of other sizes, it would reach the wrong devices.
    """
    expected = shard_sizes(whole, group.size)[group.rank]
    if mine != expected:
        raise ValueError(
            f"{name} on rank {group.rank} of {group.size}: this device brought {mine} of {whole} along dim {dim}, but "
            f"the sharding rule gives it {expected}. Cut the tensor with shard(x, group, dim={dim})"
        )


def check_member(group: Group, who: str) -> None:
    """Raises unless `group` is the group that a program was given, and this device is a member of it."""
    if not isinstance(group, Group):
        raise TypeError(f"{who} needs the group that the program was given, not {type(group).__name__}")
    if group.rank is None:
        raise ValueError(f"{who}: this device is not a member of the group; guard with `if group.rank is not None`")


def _check_dim(x: Tensor, dim: int, who: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{who} needs a torch.Tensor, not {type(x).__name__}; convert with torch.as_tensor(...)")
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"{who}: dim={dim!r} must be an integer")
    if not -x.ndim <= dim < x.ndim:
        raise IndexError(f"{who}: dim {dim} is out of range for a tensor of shape {tuple(x.shape)} with {x.ndim} dims")
