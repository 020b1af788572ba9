"""How tensors without data travel: as meta tensors, which the engine counts and combines like all others."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lib.guest.private import FakeTensor


def is_bare(x: Tensor) -> bool:
    """Whether `x` has a shape and no data (lib/guest/no_data.py)."""
    return isinstance(x, FakeTensor)


def bare(x: Tensor) -> Tensor:
    """What to hand to a verb of a `Group` in place of `x`: `x` itself, or a meta tensor of its shape and type."""
    if not is_bare(x):
        return x
    shape, dtype = x.shape, x.dtype
    with _disable_current_modes():  # this is no work of the device
        return torch.empty(shape, dtype=dtype, device="meta")
