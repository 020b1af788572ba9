"""What else a process has once, and each device for itself: its folder, its loggers, its way to start processes.

Each is an `Owner` (lib/devices/engine/own.py): swapped when the turn passes.
"""

import logging
import os

from lib.guest import private


class Folders:
    """The folder in which each device stands, for programs that call `os.chdir`."""

    def __init__(self, size: int):
        self._caller = os.getcwd()
        self._mine = [self._caller] * size
        self._now = self._caller

    def take_up(self, rank: int) -> None:
        """The process stands where device `rank` does."""
        self._go(self._mine[rank])

    def lay_aside(self, rank: int) -> None:
        """Where it stands now."""
        self._mine[rank] = self._now = os.getcwd()

    def give_back(self, failed: bool) -> None:
        """Where the caller stood."""
        os.chdir(self._caller)

    def _go(self, folder: str) -> None:
        if folder != self._now:
            os.chdir(folder)
            self._now = folder


class Loggers:
    """The handlers and level of the root logger, and the loggers that each device makes.

    Loggers that were there before, those of libraries, are common to all, and afterwards as they were.
    """

    def __init__(self, size: int):
        self._root, self._manager = logging.root, logging.root.manager
        self._caller = self._read()
        self._mine: list[tuple] = [self._copy() for _ in range(size)]
        loggers = [logger for logger in self._manager.loggerDict.values() if isinstance(logger, logging.Logger)]
        self._libraries = [(x, vars(x).copy(), list(x.handlers), list(x.filters)) for x in loggers]

    def take_up(self, rank: int) -> None:
        """Logging is that of device `rank`."""
        self._write(self._mine[rank])

    def lay_aside(self, rank: int) -> None:
        """It is kept."""
        self._mine[rank] = self._read()

    def give_back(self, failed: bool) -> None:
        """Logging is as before."""
        self._write(self._caller)
        for logger, values, handlers, filters in self._libraries:
            vars(logger).update(values, handlers=handlers, filters=filters)

    def _copy(self) -> tuple:
        handlers, filters, level, disabled, loggers, warned = self._caller
        return list(handlers), list(filters), level, disabled, dict(loggers), warned

    def _read(self) -> tuple:
        root, manager = self._root, self._manager
        return (root.handlers, root.filters, root.level, manager.disable, manager.loggerDict,
                manager.emittedNoHandlerWarning)  # fmt: skip

    def _write(self, state: tuple) -> None:
        root, manager = self._root, self._manager
        root.handlers, root.filters, level, disabled, manager.loggerDict, manager.emittedNoHandlerWarning = state
        if (root.level, manager.disable) != (level, disabled):
            root.level, manager.disable = level, disabled
            manager._clear_cache()  # each logger remembers what is enabled


class StartMethods:
    """What `multiprocessing.set_start_method` has set: each device may call it once."""

    def __init__(self, size: int):
        self._caller = private.start_method()
        self._mine = [self._caller] * size

    def take_up(self, rank: int) -> None:
        """As device `rank` has set it."""
        private.set_start_method(self._mine[rank])

    def lay_aside(self, rank: int) -> None:
        """It is kept."""
        self._mine[rank] = private.start_method()

    def give_back(self, failed: bool) -> None:
        """As before."""
        private.set_start_method(self._caller)


OWNERS = (Folders, Loggers, StartMethods)
