"""What a backward gets back in place of a parameter that its forward has saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge


@contextmanager
def same_objects() -> Iterator[None]:
    """Behind hooks, PyTorch hands a backward another object for a parameter that its forward has saved, and a `.grad`
    that is set on it is lost. Inside, `ctx.saved_tensors` gives the parameter itself, as it does without hooks."""

    def saved_tensors(ctx: Any) -> tuple[Tensor | None, ...]:
        return tuple(_itself(x) for x in super(BackwardCFunction, ctx).saved_tensors)

    if "saved_tensors" in vars(BackwardCFunction):  # a device starts a run of its own: the outer one has seen to it
        yield
        return
    BackwardCFunction.saved_tensors = property(saved_tensors)
    try:
        yield
    finally:
        del BackwardCFunction.saved_tensors


def _itself(x: Tensor | None) -> Tensor | None:
    if x is None or not (x.requires_grad and x.is_leaf):
        return x
    return get_gradient_edge(x).node.variable  # where its gradient is accumulated
