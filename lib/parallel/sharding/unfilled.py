"""Layers whose numbers come later: a model that draws its own need not wait until its layers have drawn theirs."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode


class Unfilled(TorchFunctionMode):
    """While entered, what would fill a tensor with random numbers leaves it as it is, with whatever its memory holds.

    The random stream stays where it is. `torch.device("meta")` would do that too, and every layer would then be made
    twice, first without memory: a model of small layers took three times as long to make.
    """

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.uniform_, Tensor.normal_):
            return args[0]
        if getattr(function, "__module__", "") == init.__name__:
            return kwargs["tensor"]  # so PyTorch hands it on, whatever the caller wrote
        return function(*args, **kwargs)
