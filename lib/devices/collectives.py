"""What each collective means, and what it moves.

One class per verb. `results` is the meaning: from the tensors of all devices, in rank order, to what each device gets.
`traffic` is the cost: what each device sends and receives under the ring algorithm, unless the class says otherwise.
The simulator runs `results` and charges `traffic`; nothing else decides what a collective does.

P is the number of devices in the group, N the bytes of one whole tensor.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lib.devices.hardware import Link
from lib.devices.pieces import cut, shard_sizes

COMBINE = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}


class Traffic(NamedTuple):
    """What one device moves in one call: messages, and bytes."""

    messages_sent: int = 0
    bytes_sent: int = 0
    messages_received: int = 0
    bytes_received: int = 0


def size_in_bytes(x: Tensor) -> int:
    """Bytes of the elements of `x` (of the view, not of the memory behind it)."""
    return x.numel() * x.element_size()


def combine(tensors: Sequence[Tensor], op: str) -> Tensor:
    """The tensors combined element by element, in rank order: the same bits whoever computes it."""
    result = tensors[0].clone()
    for x in tensors[1:]:
        COMBINE[op](result, x, out=result)
    return result


def one_each(x: Tensor, parts: int) -> list[Tensor]:
    """`x` for every device, each in memory of its own: what one device writes, no other may see."""
    return [x, *(x.clone() for _ in range(parts - 1))]


def ring(sizes: list[int], skip_sent: int, skip_received: int) -> list[Traffic]:
    """One trip round the ring in P-1 steps: device r sends every piece but number r + `skip_sent`, and receives
    every piece but number r + `skip_received`. `sizes` are the bytes of the pieces."""
    parts, whole = len(sizes), sum(sizes)
    return [
        Traffic(
            parts - 1, whole - sizes[(r + skip_sent) % parts], parts - 1, whole - sizes[(r + skip_received) % parts]
        )
        for r in range(parts)
    ]


def piece_bytes(x: Tensor, parts: int, dim: int) -> list[int]:
    """Bytes of the pieces of `x` cut along `dim`."""
    per_index = size_in_bytes(x) // max(x.shape[dim], 1)
    return [size * per_index for size in shard_sizes(x.shape[dim], parts)]


@dataclass(frozen=True)
class Collective(ABC):
    """Base of all verbs: what they need to be told, and what must agree between the devices."""

    name: ClassVar[str]
    #: the differentiable functions of lib.parallel that do this verb and keep the gradient
    partners: ClassVar[str] = ""

    def may_differ(self) -> int | None:
        """The dim along which the devices' shapes may differ, if any."""
        return None

    def dims(self) -> tuple[int, ...]:
        """The dims this call names; each must exist in the tensor."""
        return ()

    @abstractmethod
    def results(self, tensors: list[Tensor]) -> list[Tensor | None]:
        """What each device gets, from what each device brings (both in rank order)."""

    @abstractmethod
    def traffic(self, tensors: list[Tensor]) -> list[Traffic]:
        """What each device sends and receives, for the same tensors."""

    def seconds(self, tensors: list[Tensor], link: Link) -> float:
        """Time on `link`: that of the busiest device, in the direction that it uses more."""
        return max(
            link.seconds(max(t.messages_sent, t.messages_received), max(t.bytes_sent, t.bytes_received))
            for t in self.traffic(tensors)
        )

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"


@dataclass(frozen=True)
class AllReduce(Collective):
    """Every device gets the element-by-element sum (max, min) of all tensors. Ring: 2 (P-1)/P N per device."""

    op: str = "sum"
    name: ClassVar[str] = "all_reduce"
    partners: ClassVar[str] = "reduce_from(x, group)"

    def results(self, tensors):
        return one_each(combine(tensors, self.op), len(tensors))

    def traffic(self, tensors):
        # A reduce-scatter trip, then an all-gather trip, over P pieces of the flattened tensor.
        parts, bytes_each = len(tensors), tensors[0].element_size()
        sizes = [size * bytes_each for size in shard_sizes(tensors[0].numel(), parts)]
        whole, steps = sum(sizes), 2 * (parts - 1)
        return [
            Traffic(steps, 2 * whole - sizes[r] - sizes[(r + 1) % parts], steps, 2 * whole - sizes[r - 1] - sizes[r])
            for r in range(parts)
        ]


@dataclass(frozen=True)
class AllGather(Collective):
    """Every device gets all tensors, concatenated along `dim` in rank order. Ring: (P-1)/P of the result."""

    dim: int
    name: ClassVar[str] = "all_gather"
    partners: ClassVar[str] = "gather_from(x, group, dim) or all_gather(x, group, dim)"

    def may_differ(self):
        return self.dim

    def dims(self):
        return (self.dim,)

    def results(self, tensors):
        return one_each(torch.cat(tensors, self.dim), len(tensors))

    def traffic(self, tensors):
        return ring([size_in_bytes(x) for x in tensors], 1, 0)


@dataclass(frozen=True)
class ReduceScatter(Collective):
    """The sum of all tensors, cut along `dim`: device r gets piece r. Ring: (P-1)/P N per device."""

    dim: int
    op: str = "sum"
    name: ClassVar[str] = "reduce_scatter"
    partners: ClassVar[str] = "reduce_scatter(x, group, dim)"

    def dims(self):
        return (self.dim,)

    def results(self, tensors):
        return [piece.clone() for piece in cut(combine(tensors, self.op), len(tensors), self.dim)]

    def traffic(self, tensors):
        return ring(piece_bytes(tensors[0], len(tensors), self.dim), 0, -1)


@dataclass(frozen=True)
class AllToAll(Collective):
    """Each device cuts its tensor along `split_dim` and sends piece j to device j; what arrives is concatenated along
    `concat_dim` in rank order. Pairwise: (P-1)/P N per device."""

    split_dim: int
    concat_dim: int
    name: ClassVar[str] = "all_to_all"
    partners: ClassVar[str] = "all_to_all(x, group, split_dim, concat_dim)"

    def may_differ(self):
        return self.concat_dim

    def dims(self):
        return (self.split_dim, self.concat_dim)

    def results(self, tensors):
        pieces = [cut(x, len(tensors), self.split_dim) for x in tensors]
        return [torch.cat(arrived, self.concat_dim) for arrived in zip(*pieces, strict=True)]

    def traffic(self, tensors):
        parts = len(tensors)
        bytes_to = [piece_bytes(x, parts, self.split_dim) for x in tensors]  # bytes_to[sender][receiver]
        received = [sum(column) for column in zip(*bytes_to, strict=True)]
        return [
            Traffic(parts - 1, sum(bytes_to[r]) - bytes_to[r][r], parts - 1, received[r] - bytes_to[r][r])
            for r in range(parts)
        ]


@dataclass(frozen=True)
class Broadcast(Collective):
    """Every device gets the tensor of device `src`. A chain round the ring: each passes N on once, but the last."""

    src: int
    name: ClassVar[str] = "broadcast"

    def results(self, tensors):
        # A copy for every device, the sender too: its own tensor stays its own.
        return [tensors[self.src].clone() for _ in tensors]

    def traffic(self, tensors):
        return chain(size_in_bytes(tensors[self.src]), len(tensors), first=self.src)

    def seconds(self, tensors, link):
        return chain_seconds(size_in_bytes(tensors[self.src]), len(tensors), link)


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

    def seconds(self, tensors, link):
        return chain_seconds(size_in_bytes(tensors[0]), len(tensors), link)


@dataclass(frozen=True)
class Scatter(Collective):
    """Device `src` cuts its tensor along `dim`, device r gets piece r. Sent one by one, straight from `src`."""

    src: int
    dim: int
    name: ClassVar[str] = "scatter"
    partners: ClassVar[str] = "scatter_to(x, group, dim)"

    def dims(self):
        return (self.dim,)

    def results(self, tensors):
        return [piece.clone() for piece in cut(tensors[self.src], len(tensors), self.dim)]

    def traffic(self, tensors):
        sizes = piece_bytes(tensors[self.src], len(tensors), self.dim)
        return star(sizes, self.src)


@dataclass(frozen=True)
class Gather(Collective):
    """Device `dst` gets all tensors, concatenated along `dim` in rank order, the others nothing. Straight to `dst`."""

    dst: int
    dim: int
    name: ClassVar[str] = "gather"
    partners: ClassVar[str] = "gather_from(x, group, dim)"

    def may_differ(self):
        return self.dim

    def dims(self):
        return (self.dim,)

    def results(self, tensors):
        return [torch.cat(tensors, self.dim) if r == self.dst else None for r in range(len(tensors))]

    def traffic(self, tensors):
        outward = star([size_in_bytes(x) for x in tensors], self.dst)
        return [Traffic(t.messages_received, t.bytes_received, t.messages_sent, t.bytes_sent) for t in outward]


@dataclass(frozen=True)
class Barrier(Collective):
    """Nobody goes on before everybody has come. Empty messages, to devices 1, 2, 4, … ahead: ceil(log2 P) each."""

    name: ClassVar[str] = "barrier"

    def results(self, tensors):
        return [None for _ in tensors]

    def traffic(self, tensors):
        rounds = math.ceil(math.log2(len(tensors)))
        return [Traffic(rounds, 0, rounds, 0) for _ in tensors]


def chain(whole: int, parts: int, first: int) -> list[Traffic]:
    """`whole` bytes handed on from device to device, from `first` all the way round: P-1 hops."""
    traffic = []
    for r in range(parts):
        place = (r - first) % parts
        sends, receives = int(place < parts - 1), int(place > 0)
        traffic.append(Traffic(sends, sends * whole, receives, receives * whole))
    return traffic


def chain_seconds(whole: int, parts: int, link: Link) -> float:
    """Time of a chain whose hops all work at once, on small pieces: P-1 latencies until the last device hears of it,
    and the bytes once."""
    return link.seconds(parts - 1, whole if parts > 1 else 0)


def star(sizes: list[int], center: int) -> list[Traffic]:
    """Device `center` sends to each other device r its piece of sizes[r] bytes."""
    traffic = [Traffic(0, 0, 1, size) for size in sizes]
    traffic[center] = Traffic(len(sizes) - 1, sum(sizes) - sizes[center], 0, 0)
    return traffic
