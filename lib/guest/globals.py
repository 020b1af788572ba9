"""The globals of the module in which a guest's function stands: what a device sets there, only it sees.

`guest(train)` in a notebook may keep its process groups in globals. A script's modules are imported anew by each device
(`modules.py`); the reader's own module cannot be. So the names that its functions declare `global` are swapped with the
turn. Most modules have none, and then nothing is done.
"""

import dis
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType
from typing import Any

from lib.devices.engine.wording import is_the_readers

_NOTHING = object()


class Globals:
    """Owner of the globals that the functions beside `main` set."""

    def __init__(self, main: Callable[[], Any], size: int):
        self._module = _module_of(main)
        self._names = sorted(set(_set_by_functions(self._module)))
        self._caller: dict[str, Any] | None = None
        self._mine: list[dict[str, Any]] = [{} for _ in range(size)]

    def take_up(self, rank: int) -> None:
        """The names stand for what device `rank` has set; at first, for what the caller had."""
        if not self._names:
            return
        if self._caller is None:
            self._caller = self._read()
            self._mine = [self._caller] * len(self._mine)
        self._write(self._mine[rank])

    def lay_aside(self, rank: int) -> None:
        """They are kept."""
        if self._names:
            self._mine[rank] = self._read()

    def give_back(self, failed: bool) -> None:
        """They are the caller's."""
        if self._caller is not None:
            self._write(self._caller)

    def _read(self) -> dict[str, Any]:
        return {name: self._module.get(name, _NOTHING) for name in self._names}

    def _write(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if value is _NOTHING:
                self._module.pop(name, None)
            else:
                self._module[name] = value


def _module_of(main: Callable[[], Any]) -> dict[str, Any]:
    """The globals of the reader's function in `main`; none where it is not the reader's."""
    while isinstance(main, partial):
        main = main.func
    code = getattr(main, "__code__", None)
    return main.__globals__ if code is not None and is_the_readers(code.co_filename) else {}


def _set_by_functions(module: dict[str, Any]) -> Iterator[str]:
    for value in list(module.values()):
        inside = vars(value).values() if isinstance(value, type) else (value,)
        for function in inside:
            if isinstance(function, FunctionType) and function.__globals__ is module:
                yield from _set_by(function.__code__)


def _set_by(code: CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            yield step.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _set_by(inner)
