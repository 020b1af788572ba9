"""The device that gets the turn goes on where the last one stopped: on the same core.

Linux would wake its thread on a core that idles. That core has to wake up itself first, which takes longer than a whole
collective, and what the devices talk about is in the cache of another.
"""

import ctypes
import os
from contextlib import suppress

_number_of_my_core = getattr(ctypes.CDLL(None), "sched_getcpu", None) if hasattr(os, "sched_setaffinity") else None


def allowed_here() -> set[int] | None:
    """The cores that the caller may use, for `let_go`; None where that cannot be said."""
    return None if _number_of_my_core is None else os.sched_getaffinity(0)


def call_here(thread: int) -> set[int] | None:
    """The sleeping `thread`, by its native number, will wake on the caller's core. Returns the cores that it may use as
    soon as it is awake, for `let_go`; None where nothing was changed: not on Linux, or there is no choice."""
    if _number_of_my_core is None:
        return None
    with suppress(OSError):  # a container may forbid it
        allowed, here = os.sched_getaffinity(thread), _number_of_my_core()
        if len(allowed) > 1 and here in allowed:
            os.sched_setaffinity(thread, {here})
            return allowed
    return None


def let_go(allowed: set[int] | None) -> None:
    """The caller is awake. From now on the system may move it, and whatever it starts, to any of these cores."""
    if allowed is not None:
        with suppress(OSError):
            os.sched_setaffinity(0, allowed)
