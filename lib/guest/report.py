"""What a run did, in one page: bytes by verb and group, by line of the program, time, memory, waiting.

As text for people, as JSON for programs. Bytes are those that devices send, all of them together; times are seconds of
the virtual clock in JSON, microseconds in the text.
"""

import linecache
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib.devices.aligned import aligned
from lib.devices.cluster import Cluster
from lib.devices.counts import counted
from lib.devices.engine.wording import short_ranks
from lib.devices.memory import USES
from lib.devices.trace import Trace
from lib.guest.watch import Line, Log, Tally, watched

KINDS = ("compute", "communication", "waiting")
TOP = 10  # lines of the program
LEAST = 1e-12  # seconds: less than that is rounding
WIDTH = 58  # characters: a page shows 85, and numbers stand before


@dataclass(frozen=True)
class Call:
    """A verb in a group; `calls` and `sent` (bytes) of all its devices together."""

    verb: str
    group: tuple[int, ...]
    calls: int
    sent: int


@dataclass(frozen=True)
class Busy:
    """A line of the program: `calls`, bytes `sent` and seconds `waited` there, on all devices together."""

    file: str
    line: int
    function: str
    source: str
    calls: int
    sent: int
    waited: float


@dataclass(frozen=True)
class Device:
    """One device: seconds by kind, when it was done, and the most bytes it held, in all and by use at that moment."""

    rank: int
    seconds: dict[str, float]
    end: float
    peak: int
    held: dict[str, int]


@dataclass(frozen=True)
class Report:
    """Of one run. `devices` is empty without a clock, for then nobody knows the time; and so is `waiting`."""

    size: int
    hardware: str | None
    seconds: float | None
    calls: list[Call]
    lines: list[Busy]
    waiting: list[Busy]
    devices: list[Device]

    @property
    def sent(self) -> int:
        """Bytes, by all devices."""
        return sum(call.sent for call in self.calls)

    def to_json(self) -> dict[str, Any]:
        """Numbers, texts and lists; every name as in the classes of this file."""
        return {"sent": self.sent, **asdict(self)}

    def summary(self) -> str:
        """One line."""
        number = sum(call.calls for call in self.calls)
        time = "" if self.seconds is None else f", {self.seconds * 1e6:,.1f} us on {self.hardware}"
        return f"{counted(self.size, 'device')} simulated: {number:,} calls, {self.sent:,} bytes sent{time}"

    def __str__(self) -> str:
        parts = [self.summary(), *self._calls(), *self._lines()]
        if self.seconds is None:
            return "\n".join([*parts, "", "Time, memory and waiting: add --hardware H100 (see --help)."])
        return "\n".join([*parts, *self._times(), *self._peaks(), *self._waits()])

    def _calls(self) -> list[str]:
        if not self.calls:
            return ["", "Nothing was sent: no collective and no message."]
        alike: dict[tuple, list[tuple[int, ...]]] = defaultdict(list)
        for call in self.calls:
            alike[call.verb, len(call.group), call.calls, call.sent].append(call.group)
        rows = [["verb", "group", "calls", "bytes"]]
        for (verb, _, calls, sent), groups in alike.items():
            more = f" and {len(groups) - 1} more" if len(groups) > 1 else ""
            rows.append([verb, short_ranks(groups[0]) + more, f"{calls:,}", f"{sent:,}"])
        return _table("Sent by verb and group (of groups that did the same, one is shown)", rows, {0, 1})

    def _lines(self) -> list[str]:
        rows = [["bytes", "calls", "line"]]
        rows += [[f"{line.sent:,}", f"{line.calls:,}", _place(line)] for line in self.lines]
        return _table("The lines that send most", rows, {2}) if self.lines else []

    def _times(self) -> list[str]:
        rows = [["rank", *KINDS, "end", "busy"]]
        for device in self.devices:
            busy = device.seconds["compute"] / self.seconds if self.seconds else 0.0
            times = [f"{t * 1e6:,.1f}" for t in (*device.seconds.values(), device.end)]
            rows.append([str(device.rank), *times, f"{busy:.0%}"])
        return _table("Time of each device, in us (what overlaps counts in both columns)", _some(rows))

    def _peaks(self) -> list[str]:
        rows = [["rank", *USES, "peak"]]
        rows += [[str(d.rank), *(f"{d.held[use]:,}" for use in USES), f"{d.peak:,}"] for d in self.devices]
        return _table("Memory when a device holds most, in bytes", _some(rows))

    def _waits(self) -> list[str]:
        rows = [["us", "line"], *([f"{line.waited * 1e6:,.1f}", _place(line)] for line in self.waiting)]
        if not self.waiting:
            return ["", "No device waited for another."]
        return _table("Where devices waited for each other (all devices together)", rows, {1})


def reported(cluster: Cluster, program: Callable[..., Any]) -> Report:
    """Runs `program` on `cluster`, watched, and reports. What goes wrong is raised, as by `cluster.run`."""
    log = Log()
    cluster.run(watched(program, log))
    return report_of(cluster, log)


def report_of(cluster: Cluster, log: Log) -> Report:
    """The report on the last run of `cluster`, whose program was watched by `log`. Also of a run that failed."""
    calls = [Call(verb, ranks, tally.calls, tally.sent) for (verb, ranks), tally in log.by_call.items()]
    trace = cluster.trace
    waited = _waited(trace, log)
    lines = [_busy(line, log.by_line.get(line, Tally()), waited[line]) for line in {*log.by_line, *waited}]
    top: Callable = lambda key: sorted((x for x in lines if key(x)), key=key, reverse=True)[:TOP]  # noqa: E731
    return Report(
        cluster.size,
        cluster.hardware.name if cluster.hardware else None,
        trace.seconds if trace else None,
        sorted(calls, key=lambda call: -call.sent),
        top(lambda line: line.sent),
        top(lambda line: line.waited),
        [_device(cluster, rank) for rank in range(cluster.size)] if trace else [],
    )


def _device(cluster: Cluster, rank: int) -> Device:
    trace = cluster.trace
    when, peak = max(trace.held(rank), key=lambda point: point[1])
    held = {use: [size for time, size in trace.held(rank, use) if time <= when][-1] for use in USES}
    end = max((event.end for event in trace.events if event.rank == rank), default=0.0)
    return Device(rank, {kind: trace.total(rank, kind) for kind in KINDS}, end, peak, held)


def _waited(trace: Trace | None, log: Log) -> dict[Line, float]:
    """Seconds in which devices waited, by line. An event that has left the trace was no waiting after all."""
    kept = {id(event) for event in trace.events} if trace else set()
    waited: dict[Line, float] = defaultdict(float)
    for event, line in log.waits:
        if id(event) in kept and event.seconds > LEAST:
            waited[line] += event.seconds
    return waited


def _busy(line: Line, tally: Tally, waited: float) -> Busy:
    source = linecache.getline(line.file, line.number).strip()
    return Busy(line.file, line.number, line.function, source, tally.calls, tally.sent, waited)


def _place(line: Busy) -> str:
    text = f"{Path(line.file).name}:{line.line} {line.function}: {line.source}"
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def _some(rows: list[list[str]]) -> list[list[str]]:
    """The head and all devices, or the first and the last ones where they are many."""
    return rows if len(rows) <= 17 else [*rows[:9], ["..."] + [""] * (len(rows[0]) - 1), *rows[-2:]]


def _table(title: str, rows: list[list[str]], left: set[int] = frozenset()) -> list[str]:
    return ["", title, *(f"  {line}" for line in aligned(rows, left=left))]
