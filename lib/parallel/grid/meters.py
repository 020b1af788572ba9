"""What each axis of a grid sends: the engine's meters know verbs, and here they are told apart by group.

    meters = AxisMeters()
    groups = GridGroups(group, grid, meters)         # its groups pass every call on, and note its bytes
    meters.sent[rank, "tp"]                          # bytes, after the run

Between a group and its meeting place stands one that counts. It charges as the engine does (`Collective.traffic`), for
pieces of equal size.
"""

from collections import defaultdict
from typing import Any

from torch import Tensor

from lib.devices import Group
from lib.devices.collectives import Collective
from lib.devices.engine.meeting_place import MeetingPlace
from lib.devices.traffic import size_in_bytes


class AxisMeters:
    """`sent[rank, axis]` are the bytes that a device has sent along an axis, `calls` how often it called a verb there.
    One object serves all devices of a run: each writes under its own rank."""

    def __init__(self) -> None:
        self.sent: dict[tuple[int, str], int] = defaultdict(int)
        self.calls: dict[tuple[int, str], int] = defaultdict(int)

    def __deepcopy__(self, memo: dict) -> "AxisMeters":
        return self

    def on(self, group: Group, axis: str) -> Group:
        """The same group, whose bytes are counted under `axis`."""
        return group.at(_Counted(group.place, self, axis))

    def by_axis(self, rank: int) -> dict[str, int]:
        """The bytes that `rank` has sent, of all axes that it has used."""
        return {axis: sent for (device, axis), sent in sorted(self.sent.items()) if device == rank and sent}


class _Counted:
    """A meeting place that passes every call on to `place`."""

    def __init__(self, place: MeetingPlace, meters: AxisMeters, axis: str):
        self._place, self._meters, self._axis = place, meters, axis

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)

    def join(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None) -> Any:
        """Notes what this device sends, if all bring as much as it does."""
        if x is not None:
            self._add(ranks[rank], verb.traffic([x] * len(ranks))[rank].bytes_sent)
        return self._place.join(key, ranks, rank, verb, x)

    def send(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> None:
        """Notes the message."""
        self._add(ranks[rank], size_in_bytes(x))
        self._place.send(key, ranks, rank, dst, tag, x)

    def _add(self, rank: int, size: int) -> None:
        self._meters.sent[rank, self._axis] += size
        self._meters.calls[rank, self._axis] += 1
