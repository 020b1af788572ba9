"""Settings of PyTorch that hold for a whole process, and that programs change: after the run they are as before.

Those that are set for a while are each device's own. `with sdpa_kernel(...)` around a collective would else end for all
devices when it ends for the first, and the last would put back what the first had set. The others all devices share.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lib.guest.private_tensors import FOR_A_WHILE, FOR_ALL, OLDER_PRECISIONS, PRECISIONS

# Precision is set in an older and a newer way. The older one changes the newer one too, so it is written first.
SHARED = (*FOR_ALL, *OLDER_PRECISIONS, *PRECISIONS)


class ForAWhile:
    """Owner of those that each device has for itself."""

    def __init__(self, size: int):
        self._caller = self._now = self._read()
        self._mine = [self._caller] * size

    def take_up(self, rank: int) -> None:
        """PyTorch is set as device `rank` has left it."""
        self._write(self._mine[rank])

    def lay_aside(self, rank: int) -> None:
        """It is kept."""
        self._now = self._mine[rank] = self._read()

    def give_back(self, failed: bool) -> None:
        """As before."""
        self._now = self._read()
        self._write(self._caller)

    def _read(self) -> list[bool]:
        return [get() for get, _ in FOR_A_WHILE]

    def _write(self, values: list[bool]) -> None:
        if values != self._now:
            for (_, put), value in zip(FOR_A_WHILE, values, strict=True):
                put(value)
            self._now = values


@contextmanager
def shared(size: int) -> Iterator[None]:
    """Around a run: the caller finds its own again."""
    before = [_said(get) for get, _ in SHARED]
    try:
        yield
    finally:
        for (get, put), value in zip(SHARED, before, strict=True):
            if value is not None and _said(get) != value:
                put(value)


def _said(get: Callable[[], Any]) -> Any:
    """None: PyTorch does not say the older precision where the newer one was set."""
    try:
        return get()
    except RuntimeError:
        return None
