"""The links that a group of devices talks over, and how long its ways of talking take on them.

A node has a network card for each of its devices. So a ring over several nodes is really g rings, g being the members
that it has in a node: each ring enters and leaves a node by another card, and carries a g-th of the bytes (this is how
NCCL lays its rings). Devices of a node stand next to each other in the ring, whatever their order in the group. Each
hop costs the link that it crosses, and hops over different links work at the same time.
"""

from collections import Counter
from collections.abc import Sequence

from lib.devices.hardware import Hardware, Link


class Ways:
    """The links between `ranks` (of the cluster, in the order of the group)."""

    def __init__(self, hardware: Hardware, ranks: Sequence[int]):
        hardware.link(ranks)  # refuses nodes that are not connected
        self._hardware, self._ranks = hardware, tuple(ranks)
        members = Counter(rank // hardware.per_node for rank in ranks).values()
        self._nodes, self._cards = len(members), min(members)
        # Which of a device's links are in use: those inside a node, those between nodes, or both.
        self.kinds = ("inside",) * (max(members) > 1) + ("between",) * (self._nodes > 1)

    def ring(self, trips: int, size: float) -> float:
        """Seconds for `trips` trips round the ring, on which each device passes on `size` bytes in all.

        A piece goes over the network once for each further node: nodes - 1 of its latencies a trip, not P - 1. The
        bytes go over all links at once; the slower kind of link sets the pace.
        """
        near = len(self._ranks) - self._nodes
        latency = trips * (near * self._hardware.inside.latency + (self._nodes - 1) * self._latency_between)
        paces = [size / self._hardware.inside.bandwidth] if "inside" in self.kinds else []
        if "between" in self.kinds:
            paces.append(size / (self._cards * self._hardware.between.bandwidth))
        return latency + max(paces, default=0.0)

    def direct(self, sizes: Sequence[Sequence[int | None]]) -> float:
        """Seconds in which sizes[i][j] bytes go straight from device i to device j (None: no message). A device's link
        inside the node and its network card work at the same time, each on one message after the other."""
        slowest = 0.0
        for kind, link in (("inside", self._hardware.inside), ("between", self._hardware.between)):
            if kind not in self.kinds:
                continue
            sent, received = ([[0, 0] for _ in self._ranks] for _ in range(2))  # messages, bytes
            for i, row in enumerate(sizes):
                for j, size in enumerate(row):
                    if size is not None and i != j and self._kind(i, j) == kind:
                        for count in (sent[i], received[j]):
                            count[0] += 1
                            count[1] += size
            for out, back in zip(sent, received, strict=True):
                slowest = max(slowest, link.seconds(max(out[0], back[0]), max(out[1], back[1])))
        return slowest

    def rounds(self, distances: Sequence[int]) -> float:
        """Seconds for rounds of empty messages, each from every device to the one `distance` ahead."""
        parts = len(self._ranks)
        return sum(max(self._link(r, (r + distance) % parts).latency for r in range(parts)) for distance in distances)

    @property
    def _latency_between(self) -> float:
        return self._hardware.between.latency if "between" in self.kinds else 0.0

    def _kind(self, i: int, j: int) -> str:
        each = self._hardware.per_node
        return "inside" if self._ranks[i] // each == self._ranks[j] // each else "between"

    def _link(self, i: int, j: int) -> Link:
        return getattr(self._hardware, self._kind(i, j))
