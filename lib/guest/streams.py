"""Streams on the virtual clock: what a program gives to a stream of its own has a time of its own.

On a GPU, the work of one stream is done in order, and two streams know nothing of each other until one waits for an
event of the other. So FSDP2 gathers the next layer's parameters on one stream while another one computes. The CPU does
all in the order of the program; `torch.cpu.Stream` and, with pretended GPUs, `torch.cuda.Stream` still say what would
be beside what, and that is all that the clock needs: while a device is on a stream, `clock.now` is the time of that.

Left out: kernels of two streams that get into each other's way on one GPU.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch

from lib.devices.clock import Clock
from lib.guest.own import here


def clock_here() -> tuple[Clock | None, int]:
    """The virtual clock of this thread's device, if one runs, and the device's rank."""
    device = here()
    return (device.group.place.clock, device.group.me) if device else (None, 0)


class Event:
    """A moment: on the virtual clock where one runs, else on the host's."""

    streams: "Streams"

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, **kwargs: Any):
        self._timing, self.when = enable_timing, None

    def record(self, stream: "Stream | None" = None) -> None:
        """It is when all that `stream` (default: the current one) was given is done."""
        self.when = (stream or self.streams.current_stream()).now

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds from this event to `end`. ValueError where CUDA would refuse."""
        if not (self._timing and end._timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self.when is None or end.when is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return 1e3 * (end.when - self.when)

    def query(self) -> bool:
        """Whether all that was before it is done: on the host, yes."""
        return True

    def wait(self, stream: "Stream | None" = None) -> None:
        """`stream` (default: the current one) goes on when it has come."""
        (stream or self.streams.current_stream()).wait_event(self)

    synchronize = wait


class Stream:
    """Some work in order. As a context, it is the thread's current stream."""

    streams: "Streams"
    stream_id = cuda_stream = 0

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any):
        self.device_index, self.priority, self._entered = self.streams._index(device), priority, []
        self.device = torch.device("cuda", self.device_index)
        self.done = 0.0  # when it is done with what it was given, on the clock; the current one's is `clock.now`
        self.streams._of_thread().add(self)

    @property
    def now(self) -> float:
        """When it is done with what it was given so far."""
        clock, me = clock_here()
        if clock is None:
            return perf_counter()
        return clock.now[me] if self.streams.current_stream() is self else self.done

    def wait_event(self, event: Event) -> None:
        """What it is given from now on begins after `event`."""
        clock, me = clock_here()
        if clock is None or event is None or event.when is None:
            return
        if self.streams.current_stream() is self:
            clock.wait_until(me, event.when, "stream", clock.now[me])  # what it waits for has an event of its own
        else:
            self.done = max(self.done, event.when)

    def wait_stream(self, stream: "Stream") -> None:
        """What it is given from now on begins after all that `stream` was given so far."""
        self.wait_event(stream.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        """An event that comes when it is done with what it was given so far."""
        event = event or self.streams.Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """The host waits until it is done; so all that is given to any stream afterwards begins later."""
        self.streams.current_stream().wait_stream(self)

    def query(self) -> bool:
        """Whether all is done: on the host, yes."""
        return True

    def is_capturing(self) -> bool:
        """Whether a graph of kernels is recorded: no."""
        return False

    def __enter__(self) -> "Stream":
        self._entered.append(self.streams.current_stream())
        self.streams.set_stream(self)
        return self

    def __exit__(self, *error: Any) -> None:
        self.streams.set_stream(self._entered.pop())


class Streams:
    """Which stream each thread is on. The methods stand for the functions of torch.cuda and torch.cpu."""

    def __init__(self) -> None:
        self._thread = threading.local()
        # Classes, as in PyTorch: programs write their names in annotations, too.
        self.Event = type("Event", (Event,), {"streams": self})
        self.Stream = type("Stream", (Stream,), {"streams": self})

    def _index(self, device: Any) -> int:
        return 0

    def _of_thread(self) -> weakref.WeakSet:
        return vars(self._thread).setdefault("streams", weakref.WeakSet())

    def synchronize(self, device: Any = None) -> None:
        """The host waits until all streams are done."""
        self._index(device)
        for stream in self._of_thread():
            stream.synchronize()

    def default_stream(self, device: Any = None) -> Stream:
        """The one that a thread is on when it begins."""
        if not hasattr(self._thread, "default"):
            self._thread.default = self._thread.current = self.Stream()
        return self._thread.default

    def current_stream(self, device: Any = None) -> Stream:
        """The one that the thread is on."""
        return getattr(self._thread, "current", None) or self.default_stream()

    def set_stream(self, stream: Stream | None) -> None:
        """From now on, the thread gives its work to `stream`; None changes nothing."""
        if stream is not None:
            clock, me = clock_here()
            if clock is not None:
                self.current_stream().done = clock.now[me]
                clock.now[me] = stream.now if stream is self.current_stream() else stream.done
            self._thread.current = stream

    @contextmanager
    def stream(self, stream: Stream | None) -> Iterator[None]:
        """Inside, the thread is on `stream`."""
        before = self.current_stream()
        self.set_stream(stream)
        try:
            yield
        finally:
            self.set_stream(before)
