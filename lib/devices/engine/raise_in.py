"""An exception that one thread raises in another."""

import ctypes
from threading import Thread


def raise_in(thread: Thread, error: type[BaseException]) -> None:
    """Raises `error` in `thread`, as soon as that is in Python code again, in place of what was sent before.

    It cannot be taken back: after PyThreadState_SetAsyncExc with NULL, Python 3.11 keeps looking for an exception, and
    in a thread that a debugger or coverage traces it does so for ever at the next call.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(error))
