"""A backward that has no backward of its own, and says so before a number is wrong.

PyTorch's `once_differentiable` complains only when a second backward comes through the function. One that is asked for
the gradient of something before it stops there instead, and a penalty on gradients, or a Hessian, is zero in silence.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def first_order(backward: Callable) -> Callable:
    """Decorator for the backward of a `Function`: RuntimeError when a graph of it is wanted, by create_graph=True."""
    name = backward.__qualname__.split(".")[0].lstrip("_")

    @wraps(backward)
    def once(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"the backward of {name} has no backward of its own, and create_graph=True asks for one: second "
                "derivatives would be zero. Take them of the dense layers, on one device"
            )
        return backward(ctx, *grads)

    return once
