"""Which line of a program sends how much, and where it waits: noted between a group and its meeting place.

    log = Log()
    cluster.run(watched(program, log))      # any program of `Cluster.run`, the book's own too

A line is the innermost one of the reader's code; under `loss.backward()` that is the line of the backward.
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, NamedTuple

from torch import Tensor

from lib.devices.collectives import Collective
from lib.devices.engine.meeting_place import MeetingPlace
from lib.devices.engine.wording import is_the_readers
from lib.devices.group import Group
from lib.devices.trace import Event
from lib.devices.traffic import size_in_bytes


class Line(NamedTuple):
    """A line of the program."""

    file: str
    number: int
    function: str


@dataclass
class Tally:
    """Of one line, or of one verb in one group, on all devices together: calls, and bytes sent."""

    calls: int = 0
    sent: int = 0


class Log:
    """What all devices of a run did. Verbs and groups (ranks of the cluster) on the one hand, lines on the other."""

    def __init__(self) -> None:
        self.by_call: dict[tuple[str, tuple[int, ...]], Tally] = defaultdict(Tally)
        self.by_line: dict[Line, Tally] = defaultdict(Tally)
        self.waits: list[tuple[Event, Line]] = []  # where devices stood still; some events may leave the trace later
        self._coming: dict[tuple[int, int], dict[int, tuple[Tensor | None, Line]]] = defaultdict(dict)
        self._readers: dict[CodeType, bool] = {}
        self._clock: Any = None

    def line(self, frame: FrameType) -> Line:
        """The innermost line of the reader's that led to `frame`."""
        while frame.f_back is not None and not self._is_the_readers(frame.f_code):
            frame = frame.f_back
        return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)

    def _is_the_readers(self, code: CodeType) -> bool:
        if code not in self._readers:  # asked at every frame of every call
            self._readers[code] = is_the_readers(code.co_filename)
        return self._readers[code]

    def sends(self, verb: str, ranks: tuple[int, ...], line: Line, sent: int) -> None:
        """One device calls `verb` in a group, and sends so many bytes."""
        for tally in (self.by_call[verb, ranks], self.by_line[line]):
            tally.calls += 1
            tally.sent += sent

    def comes(self, call: tuple[int, int], ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None,
              line: Line) -> None:  # fmt: skip
        """Device `rank` of a group comes to a collective. What it costs is known when all have come."""
        come = self._coming[call]
        come[rank] = x, line
        if len(come) == len(ranks):
            del self._coming[call]
            tensors = [come[r][0] for r in range(len(ranks))]
            for r, traffic in enumerate(verb.traffic(tensors)):
                self.sends(verb.name, ranks, come[r][1], traffic.bytes_sent)

    def look_at(self, clock: Any) -> None:
        """From now on, notes in which line a device stands still until a time."""
        if clock is None or clock is self._clock:
            return
        self._clock, inner = clock, clock.wait_until

        def wait_until(rank: int, time: float, why: str, begin: float | None = None) -> None:
            events = clock.trace.events
            known = len(events)
            inner(rank, time, why, begin)
            if len(events) > known and why not in ("launch", "sleep"):  # for its host, no device waits for another
                self.waits.append((events[-1], self.line(sys._getframe(1))))

        clock.wait_until = wait_until


class Watch:
    """A meeting place behind which everything goes on as before, and is noted; one object for each device."""

    def __init__(self, place: MeetingPlace, log: Log):
        self._place, self._log = place, log
        self._calls: dict[int, int] = defaultdict(int)  # key of the group -> its collectives so far
        log.look_at(getattr(place, "clock", None))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)  # whatever sends nothing

    def join(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None) -> Any:
        """A collective begins."""
        joined = self._place.join(key, ranks, rank, verb, x)  # first, so that what is refused is not counted
        self._calls[key] += 1
        self._log.comes((key, self._calls[key]), ranks, rank, verb, x, self._log.line(sys._getframe(1)))
        return joined

    def send(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> None:
        """A message leaves."""
        line = self._log.line(sys._getframe(1))
        self._place.send(key, ranks, rank, dst, tag, x)
        self._log.sends("send", ranks, line, size_in_bytes(x))

    def offer(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> Any:
        """A message leaves, and is waited for later."""
        handle = self._place.offer(key, ranks, rank, dst, tag, x)
        self._log.sends("send", ranks, self._log.line(sys._getframe(1)), size_in_bytes(x))
        return handle


@dataclass(frozen=True)
class Watched:
    """The same program, watched."""

    program: Callable[..., Any]
    log: Log

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)  # what the engine asks a guest for

    def __call__(self, group: Group, *args: Any, **kwargs: Any) -> Any:
        return self.program(group.at(Watch(group.place, self.log)), *args, **kwargs)


def watched(program: Callable[..., Any], log: Log) -> Watched:
    """The same program for `Cluster.run`; what it does is noted in `log`."""
    return Watched(program, log)
