"""The collectives in which one device is special: it alone brings something, or alone gets something. And the barrier.

As in `collectives.py`, `results` is the meaning and `traffic` the cost.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from lib.devices.collectives import AllGather, AllReduce, AllToAll, Collective, ReduceScatter, combine, one_each
from lib.devices.pieces import cut
from lib.devices.traffic import Traffic, chain, piece_bytes, size_in_bytes, star


@dataclass(frozen=True)
class Broadcast(Collective):
    """Every device gets the tensor of device `src`. A chain round the ring: each passes N on once, but the last."""

    src: int
    name: ClassVar[str] = "broadcast"

    def results(self, tensors):
        # A copy for every device, the sender too: its own tensor stays its own.
        return one_each(tensors[self.src].clone(), len(tensors))

    def traffic(self, tensors):
        return chain(size_in_bytes(tensors[self.src]), len(tensors), first=self.src)

    def seconds(self, tensors, ways):
        return ways.ring(1, size_in_bytes(tensors[self.src]))  # all hops work at once, on small pieces


@dataclass(frozen=True)
class Reduce(Collective):
    """Device `dst` gets the sum (max, min) of all tensors, the others nothing. A chain that ends at `dst`."""

    dst: int
    op: str = "sum"
    name: ClassVar[str] = "reduce"

    def results(self, tensors):
        return [combine(tensors, self.op) if r == self.dst else None for r in range(len(tensors))]

    def traffic(self, tensors):
        return chain(size_in_bytes(tensors[0]), len(tensors), first=self.dst + 1)

    def seconds(self, tensors, ways):
        return ways.ring(1, size_in_bytes(tensors[0]))


@dataclass(frozen=True)
class Scatter(Collective):
    """Device `src` cuts its tensor along `dim`, device r gets piece r. Sent one by one, straight from `src`."""

    src: int
    dim: int
    name: ClassVar[str] = "scatter"

    def dims(self):
        return (self.dim,)

    def results(self, tensors):
        return [piece.clone() for piece in cut(tensors[self.src], len(tensors), self.dim)]

    def traffic(self, tensors):
        return star(self._sizes(tensors), self.src)

    def seconds(self, tensors, ways):
        nothing = [None] * len(tensors)
        return ways.direct([self._sizes(tensors) if r == self.src else nothing for r in range(len(tensors))])

    def _sizes(self, tensors):
        return piece_bytes(tensors[self.src], len(tensors), self.dim)


@dataclass(frozen=True)
class Gather(Collective):
    """Device `dst` gets all tensors, concatenated along `dim` in rank order, the others nothing. Straight to `dst`."""

    dst: int
    dim: int
    name: ClassVar[str] = "gather"

    def may_differ(self):
        return self.dim

    def dims(self):
        return (self.dim,)

    def results(self, tensors):
        return [torch.cat(tensors, self.dim) if r == self.dst else None for r in range(len(tensors))]

    def traffic(self, tensors):
        outward = star([size_in_bytes(x) for x in tensors], self.dst)
        return [Traffic(t.messages_received, t.bytes_received, t.messages_sent, t.bytes_sent) for t in outward]

    def seconds(self, tensors, ways):
        return ways.direct(
            [[size_in_bytes(x) if r == self.dst else None for r in range(len(tensors))] for x in tensors]
        )


@dataclass(frozen=True)
class Barrier(Collective):
    """Nobody goes on before everybody has come. Empty messages, to devices 1, 2, 4, … ahead: ceil(log2 P) each."""

    name: ClassVar[str] = "barrier"

    def results(self, tensors):
        return [None for _ in tensors]

    def traffic(self, tensors):
        rounds = len(self._distances(tensors))
        return [Traffic(rounds, 0, rounds, 0) for _ in tensors]

    def seconds(self, tensors, ways):
        return ways.rounds(self._distances(tensors))

    def _distances(self, tensors):
        return [2**k for k in range(math.ceil(math.log2(len(tensors))))]


COLLECTIVES = (AllReduce, AllGather, ReduceScatter, AllToAll, Broadcast, Reduce, Scatter, Gather, Barrier)
