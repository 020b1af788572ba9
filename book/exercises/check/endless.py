"""A reader's program that does not come back: it is stopped where it computes, and the line is named."""

from __future__ import annotations

import linecache
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from book.exercises.check.verdict import Fault
from lib.devices.engine import turns
from lib.devices.engine.raise_in import raise_in

AGAIN = 2.0  # seconds between two attempts to stop it
PATIENCE = 10.0  # seconds of computing, for what takes milliseconds; who waits in a debugger does not compute


class _Endless(KeyboardInterrupt):
    """Raised in the thread that waits for the program, as the stop button does: the engine knows what that means."""


@contextmanager
def ended(program: Callable[..., Any], told: str) -> Iterator[None]:
    """Inside, `program` runs, on this thread or on devices. Fault with its line where it does not end; `told` says on
    what.
    """
    me, over, sending, lines = threading.current_thread(), threading.Event(), threading.Lock(), []

    def watch(start: float) -> None:
        while time.process_time() - start < PATIENCE:
            if over.wait(PATIENCE / 20):
                return
        while True:  # once more: one that comes while Python cleans up is lost
            with sending:
                if over.is_set():
                    return
                lines[:] = lines or [_line(program)]
                raise_in(me, _Endless)
            if over.wait(AGAIN):
                return

    threading.Thread(target=watch, args=(time.process_time(),), daemon=True).start()
    try:
        yield
    finally:
        while not over.is_set():
            with suppress(_Endless), sending:
                over.set()
                if lines:
                    raise_in(me, _Endless)  # at once, here: what was sent may not arrive later
        if lines:
            raise Fault(
                f"does not end {told}.",
                f"It was stopped after {PATIENCE:g} seconds of computing{lines[0]}",
                "Cause: a loop whose end is never reached?",
            ) from None


def _line(program: Callable[..., Any]) -> str:
    """Where the program is. Of many devices, on one that does not wait for its turn."""
    file, found = getattr(getattr(program, "__code__", None), "co_filename", None), {}
    for innermost in sys._current_frames().values():
        frame: FrameType | None = innermost
        while frame is not None and frame.f_code.co_filename != file:
            frame = frame.f_back
        waits = innermost.f_code.co_filename
        if frame is not None and waits != threading.__file__:  # there the caller waits for the devices
            source = linecache.getline(file, frame.f_lineno).strip()
            found[waits == turns.__file__] = f", in {frame.f_code.co_name}, line {frame.f_lineno}: {source}"
    return found.get(False, found.get(True, ""))
