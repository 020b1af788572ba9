"""The tensors among the arguments of an operation, or among its results."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Those among `values`, and in the lists and tuples among them, in their order."""
    found: list[Tensor] = []
    for x in values:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, list | tuple):
            found += tensors_in(x)
    return found


def has_hooks(parameter: Tensor) -> bool:
    """Whether someone is to get its gradient when it comes, besides the clock, which only looks."""
    later = (parameter._post_accumulate_grad_hooks or {}).values()
    return bool(parameter._backward_hooks) or not all(getattr(hook, "only_looks", False) for hook in later)
