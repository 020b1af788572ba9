"""What `torch.autocast` does inside of PyTorch's own functions, for functions with a backward of their own."""

import torch
from torch import Tensor


def autocast_type(x: Tensor) -> torch.dtype | None:
    """The type in which matrix products with `x` are computed now, such as torch.bfloat16; None without autocast."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def as_products_take(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in that type, as `F.linear` would take them.

    A function that saves them for its backward then multiplies what it saved, and sends as few bits as autocast uses.
    Gradients are cast back on their way to the weights.
    """
    dtype = autocast_type(tensors[0])
    return tensors if dtype is None else tuple(None if x is None else x.to(dtype) for x in tensors)
