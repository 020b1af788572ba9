"""Operators that a program adds to PyTorch by `torch.library`: each device calls its own functions.

PyTorch knows an operator once in a process, by its name. Every device defines it, and an operator that sums over a
group kept in a global must find that of its own device. So PyTorch is told once, and asks who is calling.
"""

import copy
import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from lib.guest import own, private, private_tensors
from lib.guest.callers import is_a_guests

_ON_THE_WAY = (*(f"{torch.__path__[0]}/{part}" for part in ("library.py", "_library/")), functools.__file__)


class Operators:
    """Owner of them. What a library defines, which is imported once for all, stays as it is."""

    def __init__(self, size: int):
        self._size = size
        self._libraries: list[Any] = []  # of C++
        # A library, an operator, or an operator for tensors of a key -> the device that told PyTorch about it.
        self._told: dict[str | tuple[str, str], int] = {}
        self._caller: list = []
        self._mine: list[list] = []  # what Python knows of operators, for each device; empty as long as all have none
        self._patch: AbstractContextManager | None = None

    def take_up(self, rank: int) -> None:
        """PyTorch knows what device `rank` has told it."""
        if self._patch is None:
            self._patch = private.patched(torch._C, _dispatch_library=self._either)
            self._patch.__enter__()
        if self._mine:
            private_tensors.write_operators(self._mine[rank])

    lay_aside = None  # what it has changed is its own

    def give_back(self, failed: bool) -> None:
        """PyTorch forgets all of them."""
        if self._patch is not None:
            self._patch.__exit__(None, None, None)
        if self._mine:
            private_tensors.write_operators(self._caller)
        for library in self._libraries:
            library.reset()
        private_tensors.forget_operators([name for name in self._told if "::" in name])

    def _either(self, *how: Any) -> Any:
        frame = sys._getframe(1)
        while frame.f_code.co_filename.startswith(_ON_THE_WAY):
            frame = frame.f_back
        ours = own.here() is not None and is_a_guests(frame.f_code.co_filename)
        return (self.library if ours else private_tensors.library_of_cpp)(*how)

    def library(self, kind: str, namespace: str, *how: Any) -> Any:
        """What stands behind a `torch.library.Library` of a device."""
        if not self._mine:
            self._caller = private_tensors.read_operators()
            self._mine = [[copy.copy(known) for known in self._caller] for _ in range(self._size)]
            private_tensors.write_operators(self._mine[_me()])
        if kind == "DEF" and not self.first(namespace):
            kind = "FRAGMENT"  # of the one that another device has made
        self._libraries.append(private_tensors.library_of_cpp(kind, namespace, *how))
        return Shared(self, namespace, self._libraries[-1])

    def first(self, what: str | tuple[str, str]) -> bool:
        """Whether it is for this device to tell PyTorch about it. If it says the same twice, PyTorch refuses it."""
        return self._told.setdefault(what, _me()) == _me()

    def of_each_device(self, operator: str, key: str, function: Callable) -> Callable | None:
        """`function` is this device's own. A function that calls that of its caller; None: PyTorch has it already."""
        me = own.here()
        me.functions[operator, key] = function

        def of_the_caller(*args: Any, **kwargs: Any) -> Any:
            device = own.here() or me  # in a thread of the program's own nobody knows whose it is
            return device.functions[operator, key](*args, **kwargs)

        return of_the_caller if self.first((operator, key)) else None


def own_function(operator: str) -> Callable | None:
    """What this device has said that its own `operator` does; None: it is PyTorch's, or a library's."""
    of = own.here().functions if own.here() else {}
    return of.get((operator, "CompositeExplicitAutograd")) or of.get((operator, "CPU"))


def _me() -> int:
    return own.here().group.me


class Shared:
    """A library of C++ as a device sees it."""

    def __init__(self, operators: Operators, namespace: str, real: Any):
        self._operators, self._namespace, self._real = operators, namespace, real

    def define(self, schema: str, *how: Any) -> str:
        """The name of the operator."""
        name = schema.partition("(")[0]
        return self._real.define(schema, *how) if self._operators.first(self._full(name)) else name

    def impl(self, name: str, key: str, function: Callable, *how: Any) -> None:
        """`function` is what the operator does for tensors of `key`, on this device."""
        if function is not torch.library.fallthrough_kernel:
            function = self._operators.of_each_device(self._full(name), key, function)
        if function is not None:
            self._real.impl(name, key, function, *how)

    def register_ad_inplace_or_view_fallback(self, name: str) -> None:
        """Once is enough."""
        if self._operators.first(self._full(name)):
            self._real.register_ad_inplace_or_view_fallback(name)

    def reset(self) -> None:
        """Nothing: the others may still call it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _full(self, name: str) -> str:
        return name if "::" in name else f"{self._namespace}::{name}"
