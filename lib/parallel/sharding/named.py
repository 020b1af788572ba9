"""Functions that are one step to whoever watches, not what they are made of.

PyTorch lets a `TorchFunctionMode` see every operation of PyTorch's own. It sees what such an operation is made of only
when the operation is not its own. A function that is `named` is seen as a whole, under its own name: so `copy_to`,
whose forward does nothing, can be told from doing nothing. Without a mode it is the plain function.
"""

from collections.abc import Callable
from functools import wraps

from torch.overrides import handle_torch_function, has_torch_function


def named(function: Callable) -> Callable:
    """Decorator: a mode that watches PyTorch's functions sees this one too."""

    @wraps(function)
    def call(*args, **kwargs):
        if has_torch_function(args):
            return handle_torch_function(call, args, *args, **kwargs)
        return function(*args, **kwargs)

    return call
