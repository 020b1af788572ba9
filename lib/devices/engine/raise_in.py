"""An exception that one thread raises in another."""

import ctypes
from threading import Thread


def raise_in(thread: Thread, error: type[BaseException] | None) -> None:
    """Raises `error` in `thread`, as soon as that is in Python code again; None takes back what was sent."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), error and ctypes.py_object(error))
