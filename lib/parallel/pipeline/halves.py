"""A backward in two halves: the gradients of the inputs at once, those of the weights later.

A linear layer Y = X W^T has two products in its backward, and they do not need each other:

    dX = dY W          the stage before waits for it
    dW = dY^T X        nobody waits for it

Inside `later.entered()`, linear layers leave the second product with `later`, together with X and dY, and
`later.run(key)` does it. Nothing of the forward is computed a second time. Other layers (norms, embeddings, attention
without weights) have no large second product: they do all at once. So do linear layers under autocast, those that
bring a backward of their own, and those whose weight has a hook for its gradient: it would see none.

Qi et al. 2023, arXiv 2401.10241, section 2.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lib.devices.tensors import has_hooks
from lib.parallel.sharding.first_order import first_order


class Later:
    """The products that are left to do, by the `key` of the backward that left them."""

    def __init__(self) -> None:
        self._left: dict[Hashable, list[tuple[Tensor, Tensor, nn.Parameter]]] = defaultdict(list)
        self._key: Hashable = None

    @contextmanager
    def entered(self, key: Hashable = None) -> Iterator[None]:
        """Around the forward, and with the `key` around the backward: there, too, for layers that are recomputed."""
        self._key = key
        with _Swap(self):
            yield

    def put(self, x: Tensor, grad: Tensor, weight: nn.Parameter) -> None:
        """Called by the backward of a layer."""
        self._left[self._key].append((x, grad, weight))

    @torch.no_grad()  # else the products would have a graph, which keeps all activations
    def run(self, key: Hashable) -> None:
        """The second half of the backward `key`: adds to the `.grad` of the weights."""
        for x, grad, weight in self._left.pop(key, ()):
            product = _rows(grad).T @ _rows(x)  # (out, in)
            if weight.grad is None:
                weight.grad = product
            else:
                weight.grad += product

    def __len__(self) -> int:
        return len(self._left)


class _LaterLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, bias: Tensor | None, later: Later) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.later, ctx.has_bias = weight, later, bias is not None
        return F.linear(x, weight, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        ctx.later.put(x.detach(), grad, ctx.weight)  # detached: x would bring its graph, and all that it keeps
        return grad @ ctx.weight, None, _rows(grad).sum(0) if ctx.has_bias else None, None


def _rows(x: Tensor) -> Tensor:
    """(..., n) -> (rows, n)."""
    return x.reshape(-1, x.shape[-1])


class _Swap(TorchFunctionMode):
    """Every `F.linear` with a weight that is trained becomes the one that leaves its second product for later."""

    def __init__(self, later: Later):
        super().__init__()
        self.later = later

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
            x, weight, bias = (*args, None)[:3]
            if isinstance(weight, nn.Parameter) and weight.requires_grad and not has_hooks(weight):
                return _LaterLinear.apply(x, weight, bias, self.later)
        return func(*args, **(kwargs or {}))
