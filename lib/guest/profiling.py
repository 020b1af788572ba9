"""PyTorch's profilers on simulated devices record nothing. There is one profiler in a process, and devices that each
start it in turn would end the process.

Only the functions by which they reach C++ are other ones here. So it makes no difference which profiler a program uses,
nor by which name; schedules, tables and traces go on as ever, and are empty.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.autograd.profiler as profiler

from lib.guest.callers import for_devices, warn
from lib.guest.private import patched


class Nothing:
    """What was recorded, as C++ hands it over."""

    def events(self) -> list:
        """No events."""
        return []

    experimental_event_tree = events

    def trace_start_ns(self) -> int:
        """The trace begins with the clock."""
        return 0

    def save(self, path: str) -> None:
        """A trace without events."""
        Path(path).write_text('{"traceEvents": []}')


@contextmanager
def profiler_left_out() -> Iterator[None]:
    """Around a run: devices that start a profiler are told that it records nothing."""
    simulated = {"_prepare_profiler": _nothing, "_enable_profiler": _say_so, "_disable_profiler": Nothing}
    with (
        patched(profiler, **{name: for_devices(getattr(profiler, name), f) for name, f in simulated.items()}),
        patched(torch.autograd, _add_metadata_json=for_devices(torch.autograd._add_metadata_json, _nothing)),
    ):
        yield


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Nobody reads it."""


def _say_so(*args: Any, **kwargs: Any) -> None:
    warn(
        "torch.profiler is left out on simulated devices: it records nothing here; --hardware H100 --trace out.json "
        "writes the timeline"
    )
