"""What every device did: calls, messages and bytes, per verb. Counted by the engine, out of the programs' reach."""

from collections import defaultdict
from dataclasses import astuple, dataclass

from lib.devices.aligned import aligned
from lib.devices.counts import counted
from lib.devices.rooted import COLLECTIVES
from lib.devices.traffic import Traffic

VERBS = tuple(sorted([*(verb.name for verb in COLLECTIVES), "send", "recv"]))


@dataclass
class Count:
    """How often a verb was called, and what it moved. Bytes are bytes, not bits."""

    calls: int = 0
    messages_sent: int = 0
    bytes_sent: int = 0
    messages_received: int = 0
    bytes_received: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Count") -> "Count":
        return Count(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Meters:
    """The counts of one run. `print(meters)` shows the table; `meters.count(rank, verb)` gives the numbers.

    Ranks are those of the cluster, whatever group a call was made in.
    """

    def __init__(self, size: int):
        self.size = size
        self._counts: dict[tuple[int, str], Count] = defaultdict(Count)

    def charge(self, rank: int, verb: str, traffic: Traffic, calls: int = 1) -> None:
        """Adds one call of `verb` by device `rank`. Only the engine calls this."""
        count = self._counts[rank, verb]
        count.calls += calls
        count.messages_sent += traffic.messages_sent
        count.bytes_sent += traffic.bytes_sent
        count.messages_received += traffic.messages_received
        count.bytes_received += traffic.bytes_received

    def verbs(self) -> list[str]:
        """The verbs that were called, in alphabetical order."""
        return sorted({verb for _, verb in self._counts})

    def count(self, rank: int | None = None, verb: str | None = None) -> Count:
        """The sum over all devices, or over device `rank` alone; over all verbs, or over `verb` alone."""
        if rank is not None and not 0 <= rank < self.size:
            raise ValueError(
                f"there is no rank {rank} among {counted(self.size, 'device')}: ranks are 0 to {self.size - 1}"
            )
        if verb is not None and verb not in VERBS:
            raise ValueError(f"there is no verb {verb!r}; the verbs are {', '.join(VERBS)}")
        chosen = (
            count
            for (r, v), count in self._counts.items()
            if (rank is None or r == rank) and (verb is None or v == verb)
        )
        return sum(chosen, Count())

    def rows(self) -> list[tuple[int, str, Count]]:
        """(rank, verb, count), by rank and verb."""
        return [(*key, self._counts[key]) for key in sorted(self._counts)]

    def __str__(self) -> str:
        above = ["", "", "", "sent", "", "received", ""]
        head = ["rank", "verb", "calls", "messages", "bytes", "messages", "bytes"]
        body = [[str(rank), verb, *(f"{n:,}" for n in astuple(count))] for rank, verb, count in self.rows()]
        return "\n".join(aligned([above, head, *body]))

    __repr__ = __str__
