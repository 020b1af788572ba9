"""The rank before each line that a device prints."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from lib.guest import own


class Prefixed:
    """A text stream that all devices write to. A line that one has not ended yet is ended before another writes.

    "rank 2:" stands before each line, also before one that begins again after a carriage return (progress bars).
    """

    def __init__(self, stream: TextIO, prefix: bool, is_shown: Callable[[int], bool]):
        self._stream, self._prefix, self._is_shown = stream, prefix, is_shown
        self._open: int | None = None  # the rank that stands in the middle of a line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes; what is not to be shown is dropped."""
        device = own.here()
        if device is None:
            return self._stream.write(text)
        me = device.group.me
        if text and self._is_shown(me):
            if self._open not in (None, me):
                self._stream.write("\n")
                self._open = None
            self._stream.write("".join(self._pieces(text, me)))
        return len(text)

    def _pieces(self, text: str, me: int) -> Iterator[str]:
        for piece in re.findall(r"[^\n\r]*[\n\r]|[^\n\r]+", text):
            if self._open is None and self._prefix and piece != "\r":
                yield f"rank {me}: "
            yield piece
            self._open = None if piece.endswith(("\n", "\r")) else me


@contextmanager
def printing(prefix: bool = True, shown: tuple[int, ...] = (), per_node: int = 1) -> Iterator[None]:
    """While entered, devices print with their ranks, and only those with a local rank in `shown` (all if empty)."""
    before = sys.stdout, sys.stderr
    is_shown = lambda rank: not shown or rank % per_node in shown  # noqa: E731
    sys.stdout, sys.stderr = (Prefixed(stream, prefix, is_shown) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
