"""What a verb was handed: a mistake is named before anything runs, with the rank, the shape and the way out.

`group` is the `Group` whose verb was called.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lib.devices.collectives import COMBINE, RARELY, Collective, can_combine
from lib.devices.engine.wording import short_ranks
from lib.partners import advice

Table = tuple[tuple[int, ...], ...]  # table[i][j]: the length of what device i sends to device j


def tensor(group: Any, x: object, verb: str) -> None:
    """TypeError for what is no dense tensor; RuntimeError for one whose gradient would be lost."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{_who(group, verb)} needs a torch.Tensor, not {type(x).__name__}")
    if x.layout is not torch.strided or x.is_nested:
        kind = "a nested tensor" if x.is_nested else f"one of layout {x.layout}"
        raise TypeError(
            f"{_who(group, verb)} needs a dense tensor, not {kind}. Send x.to_dense(), or its parts one by one"
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"{_who(group, verb)}: this {tuple(x.shape)} tensor requires grad, and {verb} would lose its gradient. "
            f"Instead {advice(verb)}pass x.detach() if no gradient is wanted"
        )
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise RuntimeError(
            f"{_who(group, verb)}: this {tuple(x.shape)} tensor has a tangent (forward mode), and {verb} "
            "would lose it. Send the tangent by a call of its own: a sum is linear"
        )


def operation(group: Any, verb: Collective, x: Tensor | None) -> None:
    """ValueError for an unknown `op`; TypeError for numbers that PyTorch cannot combine by it."""
    if verb.op not in (*COMBINE, *RARELY):  # whatever was passed, hashable or not
        raise ValueError(f"{_who(group, verb.name)}: op={verb.op!r} is not one of {', '.join(map(repr, COMBINE))}")
    if x is not None and not can_combine(x.dtype, verb.op):
        raise TypeError(
            f"{_who(group, verb)}: PyTorch cannot combine {x.dtype} by {verb.op!r}. "
            "Convert first, e.g. with .to(torch.float32)"
        )


def dim_of(group: Any, x: object, dim: int, verb: str) -> int:
    """`dim`, counted from the front. TypeError and IndexError when `x` has no such dim."""
    if not isinstance(x, Tensor):
        return dim  # refused later, or no tensor is needed here
    if isinstance(dim, bool) or not isinstance(dim, int):
        hint = "; the lengths of the pieces are sizes=[...]" if verb == "all_to_all" else ""
        raise TypeError(f"{_who(group, verb)}: dim={dim!r} must be an integer{hint}")
    if not -x.ndim <= dim < x.ndim:
        has = f"it has dims {-x.ndim} to {x.ndim - 1}" if x.ndim else "a single number has no dims: pass x.reshape(1)"
        raise IndexError(
            f"{_who(group, verb)}: dim {dim} is out of range for a tensor of shape {tuple(x.shape)}; {has}"
        )
    return dim % x.ndim


def lengths(
    group: Any, x: object, split: int, concat: int, sizes: Sequence[int] | Sequence[Sequence[int]]
) -> tuple[list[int], Table | None]:
    """The lengths of this device's own pieces for an all-to-all, and the table of all where `sizes` is one. ValueError
    when they do not fit."""
    who = _who(group, "all_to_all")
    if split != concat:
        raise ValueError(f"{who}: with sizes, split_dim={split} and concat_dim={concat} must be the same dim")
    rows = [sizes] if all(isinstance(n, int) for n in sizes) else sizes
    if not all(isinstance(row, Sequence) and all(isinstance(n, int) for n in row) for row in rows):
        raise TypeError(f"{who}: sizes={sizes!r} must be lists of Python integers; of an array, pass sizes.tolist()")
    if len(rows) not in (1, group.size) or any(len(row) != group.size or min(row) < 0 for row in rows):
        raise ValueError(
            f"{who}: sizes={sizes} must be {group.size} lengths of at least 0, one for each device, or a table of "
            f"{group.size} such rows, sizes[i][j] from device i to device j"
        )
    mine = list(rows[0] if rows[0] is sizes else rows[group.rank])
    if isinstance(x, Tensor) and sum(mine) != x.shape[split]:
        raise ValueError(
            f"{who}: sizes {mine} add up to {sum(mine)}, but this tensor of shape {tuple(x.shape)} has "
            f"{x.shape[split]} along dim {split}"
        )
    return mine, None if rows[0] is sizes else tuple(tuple(map(int, row)) for row in rows)


def member(group: Any, rank: int | None, what: str, verb: str) -> None:
    """ValueError unless this device, and the `rank` that it named, are in the group."""
    if group.rank is None:
        raise ValueError(
            f"{verb}: rank {group.me} is not a member of this group. Only members may call its verbs: "
            "guard the call with `if group.rank is not None`"
        )
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < group.size:
        hint = f". Pass a Python integer: int({what})" if isinstance(rank, Integral) and type(rank) is not int else ""
        raise ValueError(
            f"{_who(group, verb)}: {what}={rank!r} is not in the group; its ranks are 0 to {group.size - 1}{hint}"
        )


def parts_of(group: Any, parts: int | Sequence[Sequence[int]]) -> list[list[int]]:
    """The sub-groups that `split(parts)` asks for, as lists of ranks of the group."""
    if isinstance(parts, int) and not isinstance(parts, bool):
        if parts < 1 or group.size % parts:
            raise ValueError(
                f"{group.size} devices cannot be split into {parts} equal groups: {parts} must divide {group.size}"
            )
        each = group.size // parts
        return [list(range(start, start + each)) for start in range(0, group.size, each)]
    if not isinstance(parts, Sequence) or not all(isinstance(part, Sequence) for part in parts):
        raise TypeError(f"split({parts!r}) on rank {group.rank}: pass a number of groups, or a list of lists of ranks")
    lists = [list(part) for part in parts]
    named = [rank for part in lists for rank in part]
    for rank in named:
        member(group, rank, "rank", "split")
    if len(set(named)) < len(named):
        raise ValueError(f"split({lists}): a rank is named twice; each may be in one sub-group at most")
    return lists


def _who(group: Any, verb: object) -> str:
    return f"{verb} on rank {group.rank} of group {short_ranks(group.ranks)}"
