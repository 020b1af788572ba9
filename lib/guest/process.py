"""What else a process has once, and each device for itself: its folder, its loggers, its way to start processes.

Each is an `Owner` (lib/devices/engine/own.py): swapped when the turn passes. That happens thousands of times, so each
does as little as it can.
"""

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from lib.guest import private, private_python
from lib.guest.callers import for_devices

# The process's own, also where a device of one run starts another.
_MOVES = {name: getattr(os, name) for name in ("chdir", "fchdir") if hasattr(os, name)}


class Folder:
    """The folder in which the process stands now: the same when it is renamed, and even when it is removed."""

    def __init__(self) -> None:
        # Windows opens no folder, but it does not let go of one in which somebody stands either.
        self._opened = os.open(".", getattr(os, "O_PATH", os.O_RDONLY)) if hasattr(os, "fchdir") else None
        self._path = os.getcwd() if self._opened is None else None

    def enter(self) -> None:
        """The process stands there."""
        _MOVES["chdir"](self._path if self._opened is None else self._opened)

    def __del__(self) -> None:
        if self._opened is not None:
            os.close(self._opened)


class Folders:
    """The folder in which each device stands, for programs that call `os.chdir` or `os.fchdir`."""

    def __init__(self, size: int):
        self._caller = self._now = Folder()
        self._mine = [self._caller] * size
        self._moved = False  # whether any device has left the caller's folder
        self._patch: AbstractContextManager | None = None

    def take_up(self, rank: int) -> None:
        """The process stands where device `rank` does."""
        if self._patch is None:
            self._patch = private.patched(os, **{name: self._noting(real) for name, real in _MOVES.items()})
            self._patch.__enter__()
        if self._moved:
            self._now = self._mine[rank]
            self._now.enter()

    def lay_aside(self, rank: int) -> None:
        """Where it stands now."""
        self._mine[rank] = self._now

    def give_back(self, failed: bool) -> None:
        """Where the caller stood."""
        if self._patch is not None:
            self._patch.__exit__(None, None, None)
        if self._moved:
            self._caller.enter()

    def _noting(self, real: Callable) -> Callable:
        def go(*args: Any, **kwargs: Any) -> None:
            real(*args, **kwargs)
            self._now, self._moved = Folder(), True

        return for_devices(real, go)


class Loggers:
    """The handlers and level of the root logger, and the loggers that each device makes.

    Loggers that were there before, those of libraries, are common to all, and afterwards as they were.
    """

    def __init__(self, size: int):
        self._root, self._manager = logging.root, logging.root.manager
        self._caller = vars(self._root), vars(self._manager)
        self._mine = [self._copy() for _ in range(size)]
        self._enabled = self._root.level, self._manager.disable
        loggers = [logger for logger in self._manager.loggerDict.values() if isinstance(logger, logging.Logger)]
        self._libraries = [(x, vars(x).copy(), list(x.handlers), list(x.filters)) for x in loggers]

    def take_up(self, rank: int) -> None:
        """Logging is that of device `rank`."""
        self._write(*self._mine[rank])

    lay_aside = None  # what it has changed is its own

    def give_back(self, failed: bool) -> None:
        """Logging is as before."""
        self._write(*self._caller)
        for logger, values, handlers, filters in self._libraries:
            vars(logger).update(values, handlers=handlers, filters=filters)

    def _copy(self) -> tuple[dict, dict]:
        root, manager = self._caller
        mine = {**root, "handlers": list(root["handlers"]), "filters": list(root["filters"]), "_cache": {}}
        return mine, {**manager, "loggerDict": dict(manager["loggerDict"])}

    def _write(self, root: dict, manager: dict) -> None:
        self._root.__dict__, self._manager.__dict__ = root, manager
        enabled = self._root.level, self._manager.disable
        if enabled != self._enabled:  # each logger remembers what is enabled
            self._enabled = enabled
            self._manager._clear_cache()


class StartMethods:
    """What `multiprocessing.set_start_method` has set: each device may call it once, whatever the caller has set."""

    def __init__(self, size: int):
        self._context = private_python.default_context()
        self._caller = self._context._actual_context
        self._mine = [None] * size  # nothing, as in a process that has just begun

    def take_up(self, rank: int) -> None:
        """As device `rank` has set it."""
        self._context._actual_context = self._mine[rank]

    def lay_aside(self, rank: int) -> None:
        """It is kept."""
        self._mine[rank] = self._context._actual_context

    def give_back(self, failed: bool) -> None:
        """As before."""
        self._context._actual_context = self._caller


OWNERS = (Folders, Loggers, StartMethods)
