"""What a program leaves to `atexit`: each device does it at its own end, while its groups are still there.

Only what the program itself registers. A library is imported once, and cleans up when the whole process ends.
"""

import atexit
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lib.devices import DeadlockError, MismatchError
from lib.guest import own, private
from lib.guest.callers import for_guests


@contextmanager
def endings(size: int) -> Iterator[None]:
    """Around a run: `atexit.register` and `atexit.unregister` speak of the end of the device."""
    register, unregister = for_guests(atexit.register, _register), for_guests(atexit.unregister, _unregister)
    with private.patched(atexit, register=register, unregister=unregister):
        yield


def _register(function: Callable, *args: Any, **kwargs: Any) -> Callable:
    own.here().at_exit.append((function, args, kwargs))
    return function


def _unregister(function: Callable) -> None:
    at_exit = own.here().at_exit
    at_exit[:] = [entry for entry in at_exit if entry[0] != function]


def come(device: own.Device) -> None:
    """The program of `device` has ended well: calls what it has registered, the last first. As in Python, an error
    there is told and changes nothing else; but a deadlock remains one."""
    while device.at_exit:
        function, args, kwargs = device.at_exit.pop()
        try:
            function(*args, **kwargs)
        except (DeadlockError, MismatchError):
            raise
        except Exception as error:
            name = getattr(function, "__qualname__", function)
            warnings.warn(f"rank {device.group.me}: {name}, left to atexit, raised {error!r}", stacklevel=2)
