"""What every device did and when, in virtual time."""

import json
from collections import defaultdict
from itertools import accumulate, chain
from pathlib import Path
from typing import Literal, NamedTuple

from lib.devices.aligned import aligned
from lib.devices.memory import USES, Held, Use

Kind = Literal["compute", "communication", "waiting"]


class Event(NamedTuple):
    """Device `rank` did `name` from `start` to `end` (seconds of virtual time).

    `flops` and `moved` (bytes of device memory) for compute; `sent` (bytes) for communication.
    """

    rank: int
    kind: Kind
    name: str
    start: float
    end: float
    flops: int = 0
    moved: int = 0
    sent: int = 0

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


class Span(NamedTuple):
    """The program of device `rank` calls the time from `start` to `end` `name`: `with group.span(name)`."""

    rank: int
    name: str
    start: float
    end: float


class Trace:
    """The events of one run, in the order in which they were recorded. Readable also when the run failed."""

    def __init__(self, size: int):
        self.size = size
        self.events: list[Event] = []
        self.memory: list[Held] = []
        self.spans: list[Span] = []

    @property
    def seconds(self) -> float:
        """When the last device was done."""
        return max((event.end for event in self.events), default=0.0)

    def during(self, name: str) -> "Trace":
        """What began inside of the spans called `name`, such as a step without its initialization, as a trace of its
        own that begins at 0, with the first of them. What was held then counts from then on.

        Raises ValueError when no span has this name.
        """
        spans = [span for span in self.spans if span.name == name]
        if not spans:
            known = ", ".join(sorted({repr(span.name) for span in self.spans})) or "none"
            raise ValueError(
                f"no span is called {name!r}; there are: {known}. Name one with `with group.span({name!r})`"
            )
        zero, end = min(span.start for span in spans), max(span.end for span in spans)
        spans_of = [[span for span in spans if span.rank == rank] for rank in range(self.size)]
        part = Trace(self.size)
        for thing in chain(self.events, self.spans):
            if any(span.start <= thing.start < span.end for span in spans_of[thing.rank]):
                moved = thing._replace(start=thing.start - zero, end=thing.end - zero)
                (part.events if isinstance(thing, Event) else part.spans).append(moved)
        for held in self.memory:
            if held.start < end and held.end > zero:
                part.memory.append(held._replace(start=max(held.start, zero) - zero, end=min(held.end, end) - zero))
        return part

    def total(self, rank: int | None = None, kind: Kind | None = None) -> float:
        """Seconds during which device `rank` (or each, added up) was busy with `kind` (or anything).

        What overlaps counts once: a device sends and receives at the same time, and computes meanwhile.
        """
        ranks = range(self.size) if rank is None else [rank]
        return sum(_covered([e for e in self.events if e.rank == r and kind in (None, e.kind)]) for r in ranks)

    def flops(self, rank: int) -> int:
        """The FLOPs that device `rank` was charged for."""
        return sum(event.flops for event in self.events if event.rank == rank)

    def held(self, rank: int, kind: Use | None = None) -> list[tuple[float, int]]:
        """The bytes that device `rank` holds over time, of `kind` or in all: (time, bytes from then on)."""
        changes: dict[float, int] = defaultdict(int, {0.0: 0})
        for block in self.memory:
            if block.rank == rank and kind in (None, block.kind):
                changes[block.start] += block.size
                changes[block.end] -= block.size
        times = sorted(changes)
        return list(zip(times, accumulate(changes[time] for time in times), strict=True))

    def peak(self, rank: int, kind: Use | None = None) -> int:
        """The most bytes that device `rank` held at any time, of `kind` or in all."""
        return max(size for _, size in self.held(rank, kind))

    def memory_table(self) -> str:
        """Per device: when it holds most (us), the bytes of each kind at that moment, and their sum, the peak."""
        rows = [["rank", "at us", *USES, "peak"]]
        for rank in range(self.size):
            when = max(self.held(rank), key=lambda point: point[1])[0]
            at = [[size for time, size in self.held(rank, kind) if time <= when][-1] for kind in (*USES, None)]
            rows.append([str(rank), f"{when * 1e6:,.1f}", *(f"{size:,}" for size in at)])
        return "\n".join(aligned(rows, gap=" "))  # many columns: with two spaces between them a page cuts the last one

    def table(self) -> str:
        """Per device: seconds of compute, communication and waiting, the end, and the share of time spent computing."""
        ends = [0.0] * self.size
        for event in self.events:
            ends[event.rank] = max(ends[event.rank], event.end)
        rows = [["rank", "compute us", "communication us", "waiting us", "end us", "busy"]]
        for rank in range(self.size):
            times = [self.total(rank, kind) for kind in ("compute", "communication", "waiting")]
            busy = times[0] / self.seconds if self.seconds else 0.0
            rows.append([str(rank), *(f"{t * 1e6:,.1f}" for t in (*times, ends[rank])), f"{busy:.0%}"])
        return "\n".join(aligned(rows))

    def to_chrome(self, path: str | Path) -> None:
        """Writes the trace in Chrome's format: open it in ui.perfetto.dev or chrome://tracing.

        One process per device. Communication has a track of its own, since it may overlap compute, and so have the
        spans that the program named. In microseconds.
        """
        rows = [
            {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"device {rank}"}}
            for rank in range(self.size)
        ]
        for rank in range(self.size):
            for track, name in enumerate(("compute", "communication")):
                rows.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": track, "args": {"name": name}})
        for event in self.events:
            details = {
                key: value for key, value in event._asdict().items() if key in ("flops", "moved", "sent") and value
            }
            rows.append(
                {
                    "ph": "X", "name": event.name, "cat": event.kind, "pid": event.rank,
                    "tid": int(event.kind == "communication"), "ts": event.start * 1e6, "dur": event.seconds * 1e6,
                    "args": details,
                }
            )  # fmt: skip
        for rank in sorted({span.rank for span in self.spans}):
            rows.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": 2, "args": {"name": "program"}})
        for span in self.spans:
            times = {"ts": span.start * 1e6, "dur": (span.end - span.start) * 1e6}
            rows.append({"ph": "X", "name": span.name, "cat": "span", "pid": span.rank, "tid": 2, **times})
        Path(path).write_text(json.dumps({"traceEvents": rows, "displayTimeUnit": "ns"}), "utf-8")

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__


def _covered(events: list[Event]) -> float:
    """Seconds covered by at least one of the events."""
    total, end = 0.0, 0.0
    for event in sorted(events, key=lambda event: event.start):
        total += max(0.0, event.end - max(event.start, end))
        end = max(end, event.end)
    return total
