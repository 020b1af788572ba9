"""The part of `private.py` for Python itself: imports under way, processes, classes that are written in C."""

import ctypes
import gc
import importlib._bootstrap as bootstrap
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from lib.guest.private import take


def forget_import_locks(names: set[str]) -> None:
    """Another device may import the modules `names`, even if this one waits in the middle of importing them."""
    locks = bootstrap._module_locks  # few or none: only of imports under way
    for name in [name for name in list(locks) if name in names]:
        locks.pop(name, None)


def default_context() -> Any:
    """What `multiprocessing.set_start_method` writes into, as `_actual_context`."""
    return take("multiprocessing.context", "_default_context")


def target_of(process: BaseProcess) -> Callable | None:
    """The function that a process which has not been started will call."""
    return process._target


def arguments_of(process: BaseProcess) -> tuple[tuple, dict[str, Any]]:
    """What it will call it with."""
    return tuple(process._args), dict(process._kwargs)


def parent_of(process: BaseProcess) -> int:
    """The number of the process that made it."""
    return process._parent_pid


def method_of(process: BaseProcess) -> str:
    """How it would be started: "fork", "spawn" or "forkserver"."""
    return type(process)._start_method or multiprocessing.get_start_method()


@contextmanager
def methods_of_c(kind: type, **replacements: Any) -> Iterator[None]:
    """While entered, a class that is written in C has other methods. It stays the same class, so what was pickled with
    it, or imported by name, goes on as before."""
    inside = gc.get_referents(vars(kind))[0]  # the dict behind the view
    before = {name: inside[name] for name in replacements}
    try:
        inside.update(replacements)
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))
        yield
    finally:
        inside.update(before)
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))
