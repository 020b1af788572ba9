"""Functions of Python that mean something else on a simulated device than in a process."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.devices.engine.wording import is_the_readers
from lib.guest import own


@functools.cache
def is_a_guests(file: str) -> bool:
    """Whether the code in `file` is the program's own, not a library's."""
    return is_the_readers(file) and not file.startswith("<frozen") and not _installed_elsewhere(Path(file))


def _installed_elsewhere(file: Path) -> bool:
    """Whether pip has put it into a folder of another name, as `pip install --target libs` does."""
    return any(str(folder) in sys.path and any(folder.glob("*.dist-info")) for folder in file.parents)


def for_guests(real: Callable, simulated: Callable) -> Callable:
    """`simulated` where the program of a device calls it, `real` where a library or somebody else does."""

    @functools.wraps(real)
    def either(*args: Any, **kwargs: Any) -> Any:
        ours = own.here() is not None and is_a_guests(sys._getframe(1).f_code.co_filename)
        return (simulated if ours else real)(*args, **kwargs)

    return either


def for_devices(real: Callable, simulated: Callable) -> Callable:
    """`simulated` in the thread of a device, whoever calls it there, and `real` elsewhere."""

    @functools.wraps(real)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (real if own.here() is None else simulated)(*args, **kwargs)

    return either


def refused(what: str, instead: str) -> Callable:
    """A function that raises RuntimeError: `what` cannot be, and what to do instead."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"rank {own.here().group.me}: {what}. {instead}")

    return refuse
