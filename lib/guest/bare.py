"""How tensors without data travel: as meta tensors, which the engine counts and combines like all others."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.guest.private_tensors import FakeTensor, without_modes


def is_bare(x: Tensor) -> bool:
    """Whether `x` has a shape and no data (lib/guest/no_data.py)."""
    return isinstance(x, FakeTensor)


def bare(x: Tensor) -> Tensor:
    """What to hand to a verb of a `Group` in place of `x`: `x` itself, or a meta tensor of its shape and type."""
    if not is_bare(x):
        return strided(x)
    return _meta(x.shape, x.dtype)


def flat(x: Tensor) -> Tensor:
    """The same with one dim. Shape (n,)."""
    return _meta((x.numel(),), x.dtype) if is_bare(x) else strided(x).detach().reshape(-1)


def strided(x: Tensor) -> Tensor:
    """`x`. ValueError for a sparse tensor, where gloo takes none either."""
    if x.layout != torch.strided:
        raise ValueError(
            f"a sparse tensor ({x.layout}) of shape {tuple(x.shape)} cannot be sent, but for all_reduce by SUM. Pass "
            "x.to_dense(), or send x.indices() and x.values()"
        )
    return x


def _meta(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    with without_modes():  # this is no work and no memory of the device
        return torch.empty(shape, dtype=dtype, device="meta")
