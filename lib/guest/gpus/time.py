"""Streams and events of GPUs that are not there. All streams of a device are one: what the program says first is done
first, so nobody has to wait for anybody."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch


class Event:
    """A moment: on the virtual clock where one runs, else on the host's."""

    now: Callable[[], float | None]  # seconds on the clock

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, **kwargs: Any):
        self._timing, self._when = enable_timing, None

    def record(self, stream: Any = None) -> None:
        """It is now."""
        now = self.now()
        self._when = perf_counter() if now is None else now

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds from this event to `end`. ValueError where CUDA would refuse."""
        if not (self._timing and end._timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._when is None or end._when is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return 1e3 * (end._when - self._when)

    def query(self) -> bool:
        """Whether all that was before it is done: yes."""
        return True

    def wait(self, stream: Any = None) -> None:
        """Nobody waits."""

    synchronize = wait


class Stream:
    """A name for the stream of a GPU. As a context, it is the thread's current one."""

    cuda: Any  # where the current streams are kept
    stream_id = cuda_stream = 0

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any):
        self.device_index, self.priority, self._entered = self.cuda._index(device), priority, []
        self.device = torch.device("cuda", self.device_index)

    def record_event(self, event: Event | None = None) -> Event:
        """An event that is now."""
        event = event or self.cuda.Event()
        event.record(self)
        return event

    def query(self) -> bool:
        """Whether all is done: yes."""
        return True

    def is_capturing(self) -> bool:
        """Whether a graph of kernels is recorded: no."""
        return False

    def synchronize(self, *args: Any) -> None:
        """Nobody waits."""

    wait_event = wait_stream = synchronize

    def __enter__(self) -> "Stream":
        self._entered.append(self.cuda.stream(self))
        self._entered[-1].__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)
