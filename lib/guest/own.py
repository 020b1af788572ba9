"""What a process has once and each device has for itself: the world of torch.distributed, the environment, `sys.argv`,
and what the run changes for all of its devices.

Each is an `Owner` (lib/devices/engine/own.py): it swaps a reference or two when the turn passes.
"""

import builtins
import copy
import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch

from lib.devices.group import Group
from lib.devices.handle import Handle
from lib.guest import private, private_tensors


@dataclass
class Device:
    """One device of a run with a guest on it: the group of all, and the works that it has started."""

    group: Group
    # Handle not yet waited for -> the line that started it; None when PyTorch's own code did.
    open_works: dict[Handle, str | None] = field(default_factory=dict)
    started: list = field(default_factory=list)  # processes that it has started and not waited for
    at_exit: list = field(default_factory=list)  # (function, args, kwargs) that it leaves to its end
    functions: dict[tuple[str, str], Callable] = field(default_factory=dict)  # of operators it has added; custom_ops.py
    trouble: BaseException | None = None  # what went wrong in a thread of the program's own


APART = 2**22  # between the numbers of simulated processes: no real process has so large a one

_here = threading.local()


def here() -> Device | None:
    """The device whose thread this is; None in a thread that a program started itself."""
    return getattr(_here, "device", None)


def be(device: Device | None) -> None:
    """This thread is that of `device`."""
    _here.device = device


# The workers of a DataLoader are forked from a device's thread, and are real processes.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: be(None))


class Outside:
    """Enters the contexts of a run when it begins, and leaves them when it is over."""

    def __init__(self, contexts: tuple[Callable[[int], Any], ...], size: int):
        self._contexts, self._size = contexts, size
        self._entered: ExitStack | None = None

    def take_up(self, rank: int) -> None:
        """At first, the contexts are entered."""
        if self._entered is None:
            self._entered = ExitStack()
            self._entered.enter_context(warnings.catch_warnings())
            for make in self._contexts:
                self._entered.enter_context(make(self._size))

    lay_aside = None  # they hold for all devices

    def give_back(self, failed: bool) -> None:
        """They are left, the last first."""
        if self._entered is not None:
            self._entered.close()


class Worlds:
    """Of torch.distributed: the groups that each device has made."""

    def __init__(self, size: int):
        self._caller = private.world()
        self._mine = [private.World() for _ in range(size)]

    def take_up(self, rank: int) -> None:
        """torch.distributed sees the groups of device `rank`."""
        private.set_world(self._mine[rank])

    lay_aside = None  # the world that was taken up is the device's own

    def give_back(self, failed: bool) -> None:
        """torch.distributed sees what it saw before."""
        private.set_world(self._caller)


_environ = os.environ  # where a program puts something else in its place, it is still what others have


class Environments:
    """The content of `os.environ`: each device has a copy, with the variables of `of(rank)` in it."""

    def __init__(self, of: Callable[[int], dict[str, str]], size: int):
        self._caller = _environ._data
        self._mine = [self._caller | _encoded(of(rank)) for rank in range(size)]

    def take_up(self, rank: int) -> None:
        """The environment is that of device `rank`, for Python; what C reads is the last that anyone has set."""
        _environ._data = self._mine[rank]

    lay_aside = None  # the copy is the device's own

    def give_back(self, failed: bool) -> None:
        """As before, for C too."""
        _environ._data = self._caller
        for name in set().union(*self._mine) - set(self._caller):
            os.unsetenv(name)
        for name, value in self._caller.items():
            if any(mine.get(name) != value for mine in self._mine):
                os.putenv(name, value)


def _encoded(variables: dict[str, str]) -> dict[bytes, bytes]:
    return {_environ.encodekey(name): _environ.encodevalue(value) for name, value in variables.items()}


_GONE = object()


class Attributes:
    """Attributes of a module that each device sets for itself, such as `sys.argv`. All start with copies of lists and
    dicts."""

    def __init__(self, module: Any, names: tuple[str, ...], size: int):
        self._values, self._names = vars(module), names
        self._read = itemgetter(*names) if len(names) > 1 else lambda values: (values[names[0]],)
        self._size, self._caller = size, ()
        self._mine: list[tuple] = []
        self._gone = False  # whether any device has deleted one

    def take_up(self, rank: int) -> None:
        """The attributes are those of device `rank`."""
        if not self._mine:  # only now: what is around the run has been entered
            self._caller = self._read(self._values)
            self._mine = [tuple(map(_copy, self._caller)) for _ in range(self._size)]
        self._values.update(zip(self._names, self._mine[rank], strict=True))
        if self._gone:
            for name in [name for name in self._names if self._values[name] is _GONE]:
                del self._values[name]

    def lay_aside(self, rank: int) -> None:
        """They are kept."""
        try:
            self._mine[rank] = self._read(self._values)
        except KeyError:
            self._gone = True
            self._mine[rank] = tuple(self._values.get(name, _GONE) for name in self._names)

    def give_back(self, failed: bool) -> None:
        """They are as before."""
        if self._mine:
            self._values.update(zip(self._names, self._caller, strict=True))


def _copy(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, list | dict) else value


def of_python(size: int) -> list[Attributes]:
    """What programs set in `sys`, and `print`, which many take from all ranks but the first. torch.distributed wraps
    the excepthook each time that it is initialized."""
    of_sys = ("argv", "path", "excepthook", "stdout", "stderr", "stdin")
    of_builtins, of_os = ("print", "input"), ("environ", "getenv")
    return [Attributes(sys, of_sys, size), Attributes(builtins, of_builtins, size), Attributes(os, of_os, size)]


def of_torch(size: int) -> list[Attributes]:
    """The hooks that a program registers for all modules, and for all optimizers: its own ones alone. And attention,
    in whose place `context_parallel` puts its own for a while."""
    places = (*private_tensors.hooks_of_all(), (torch.nn.functional, ("scaled_dot_product_attention",)))
    return [Attributes(module, names, size) for module, names in places]
