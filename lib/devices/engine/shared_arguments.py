"""What all devices are handed is one object: they may read it, and none may write into it."""

import inspect
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn


class SharedArguments:
    """Remembers the state of every tensor that a program gets from outside, to tell after a run which was changed.

    That is its arguments, and the variables around the function (but not around those that it calls). Real processes
    would each get a copy of their own. Here a gradient that two devices add to one tensor would be counted twice, and
    nobody would see it.
    """

    def __init__(self, program: Callable[..., Any], args: tuple, kwargs: dict[str, Any]):
        arguments = ((f"argument {n}", x) for n, x in enumerate(args, 1))
        named = chain(arguments, kwargs.items(), _around(program).items())
        self._before = [(name, x, _state(x)) for name, value in named for name, x in _tensors(name, value)]

    def check_unchanged(self, size: int) -> None:
        """Raises RuntimeError that names the first tensor that some device changed, and the fix."""
        for name, x, (version, grad, grad_version) in self._before:
            now, grad_now, grad_version_now = _state(x)
            if now == version and grad_now is grad and grad_version_now == grad_version:
                continue
            what = "the gradient of " if now == version else ""
            raise RuntimeError(
                f"run: a device changed {what}{name}, shape {tuple(x.shape)}. All {size} devices were handed the same "
                "object, so it is now the work of them all together. Let the program make its own, on each device: "
                "build the model inside of it, or begin with model = copy.deepcopy(model), x = x.detach().clone()"
            )


def _around(program: Callable[..., Any]) -> dict[str, Any]:
    try:
        found = inspect.getclosurevars(program)
    except (TypeError, ValueError):  # not a plain function, or one that names a variable which has no value yet
        return {}
    return {**found.globals, **found.nonlocals}


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    # Not those in a list: a program may take its own with xs[group.rank].
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        for part, x in chain(value.named_parameters(), value.named_buffers()):
            yield f"{part} of {name}", x


def _state(x: Tensor) -> tuple[int, Tensor | None, int]:
    grad = x.grad if x.is_leaf else None
    return _version(x), grad, _version(grad)


def _version(x: Tensor | None) -> int:
    """PyTorch counts the changes in place of a tensor, but not of one from inference mode."""
    return 0 if x is None or x.is_inference() else x._version
