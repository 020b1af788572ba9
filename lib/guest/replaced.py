"""What a program puts into PyTorch in the place of a function or a class: `nn.Linear.forward = mine`.

A process has one `nn.Linear`, and the devices share it: the function of the last device would run for all, with its
globals. So each has its own, and after the run PyTorch is as before. To look everywhere takes a quarter of a
millisecond. Programs replace things at their beginning, so only the first turns of each device are followed by a look.
"""

import sys
from collections.abc import Iterator
from functools import partial
from operator import is_
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lib.guest.callers import is_a_guests

LOOKS = 10  # for each device, and one at the end of the run
_MODULES = (
    "torch", "torch.autograd", "torch.cuda", "torch.distributed", "torch.nn", "torch.nn.functional", "torch.nn.init",
    "torch.nn.utils", "torch.optim", "torch.utils.checkpoint", "torch.utils.data",
)  # fmt: skip
_GONE = object()


class Replaced:
    """Owner of what the devices have replaced."""

    def __init__(self, size: int):
        self._before: list[tuple[Any, dict[str, Any]]] = []  # a module or class, and what stood in it before the run
        self._found: dict[tuple[Any, str], Any] = {}  # where something was replaced -> what stood there
        self._mine: list[dict[tuple[Any, str], Any]] = [{} for _ in range(size)]
        self._looks = [LOOKS] * size

    def take_up(self, rank: int) -> None:
        """PyTorch is as device `rank` has made it."""
        if not self._before:
            self._before = [(place, dict(vars(place))) for place in _places()]
        for where, before in self._found.items():
            _put(where, self._mine[rank].get(where, before))

    def lay_aside(self, rank: int) -> None:
        """What it has replaced is kept."""
        if self._looks[rank]:
            self._looks[rank] -= 1
            self._look()
        if self._found:
            self._mine[rank] = {(place, name): vars(place).get(name, _GONE) for place, name in self._found}

    def give_back(self, failed: bool) -> None:
        """PyTorch is as before."""
        self._look()
        for where, before in self._found.items():
            _put(where, before)

    def _look(self) -> None:
        for place, before in self._before:
            now = vars(place)
            if len(now) == len(before) and all(map(is_, now.values(), before.values())):
                continue
            for name, value in list(now.items()):
                if value is not before.get(name, _GONE) and _is_a_guests(value):
                    self._found[place, name] = before.get(name, _GONE)


def _places() -> Iterator[Any]:
    yield from (sys.modules[name] for name in _MODULES)
    yield from (torch.Tensor, torch.utils.data.DataLoader, torch.utils.data.Dataset)
    yield from filter(lambda kind: kind.__module__.startswith("torch."), _kinds_of(nn.Module, Optimizer))


def _kinds_of(*classes: type) -> set[type]:
    return {*classes}.union(*(_kinds_of(*kind.__subclasses__()) for kind in classes if kind.__subclasses__()))


def _is_a_guests(value: Any) -> bool:
    """Whether `value` is a function or a class of the program."""
    if isinstance(value, partial):
        return _is_a_guests(value.func)
    if isinstance(value, type):
        return is_a_guests(getattr(sys.modules.get(value.__module__), "__file__", None) or "<frozen")
    function = getattr(value, "__func__", None) or getattr(value, "fget", None) or value  # of a method, of a property
    while function is not None:  # PyTorch wraps the step of an optimizer, and programs wrap what is PyTorch's
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType) and is_a_guests(code.co_filename):
            return True
        # Not getattr: a stand-in for a package may have any attribute that one asks for.
        function = getattr(function, "__dict__", {}).get("__wrapped__")
    return False


def _put(where: tuple[Any, str], value: Any) -> None:
    place, name = where
    if value is not _GONE:
        setattr(place, name, value)
    elif name in vars(place):
        delattr(place, name)
