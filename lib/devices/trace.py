"""What every device did and when, in virtual time."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["compute", "communication", "waiting"]


@dataclass(frozen=True)
class Event:
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


class Trace:
    """The events of one run, in the order in which they were recorded. Readable also when the run failed."""

    def __init__(self, size: int):
        self.size = size
        self.events: list[Event] = []

    @property
    def seconds(self) -> float:
        """When the last device was done."""
        return max((event.end for event in self.events), default=0.0)

    def total(self, rank: int | None = None, kind: Kind | None = None) -> float:
        """Seconds spent by device `rank` (or all) on `kind` (or anything). Communication may overlap compute."""
        return sum(
            event.seconds
            for event in self.events
            if (rank is None or event.rank == rank) and (kind is None or event.kind == kind)
        )

    def flops(self, rank: int) -> int:
        """The FLOPs that device `rank` was charged for."""
        return sum(event.flops for event in self.events if event.rank == rank)

    def table(self) -> str:
        """Per device: seconds of compute, communication and waiting, the end, and the share of time spent computing."""
        sums: dict[tuple[int, str], float] = defaultdict(float)
        ends = [0.0] * self.size
        for event in self.events:
            sums[event.rank, event.kind] += event.seconds
            ends[event.rank] = max(ends[event.rank], event.end)
        rows = [["rank", "compute us", "communication us", "waiting us", "end us", "busy"]]
        for rank in range(self.size):
            times = [sums[rank, kind] for kind in ("compute", "communication", "waiting")]
            busy = times[0] / self.seconds if self.seconds else 0.0
            rows.append([str(rank), *(f"{t * 1e6:,.1f}" for t in (*times, ends[rank])), f"{busy:.0%}"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)

    def to_chrome(self, path: str | Path) -> None:
        """Writes the trace in Chrome's format: open it in ui.perfetto.dev or chrome://tracing.

        One process per device; communication has a track of its own, since it may overlap compute. In microseconds.
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
                key: value for key, value in asdict(event).items() if key in ("flops", "moved", "sent") and value
            }
            rows.append(
                {
                    "ph": "X", "name": event.name, "cat": event.kind, "pid": event.rank,
                    "tid": int(event.kind == "communication"), "ts": event.start * 1e6, "dur": event.seconds * 1e6,
                    "args": details,
                }
            )  # fmt: skip
        Path(path).write_text(json.dumps({"traceEvents": rows, "displayTimeUnit": "ns"}), "utf-8")

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__
