"""What each collective means, and what it moves: the base of all, and those in which all devices are alike.

One class per verb; those with a special device are in `rooted.py`. `results` is the meaning: from the tensors of all
devices, in rank order, to what each device gets. `traffic` is the cost: what each device sends and receives under the
ring algorithm, unless the class says otherwise. The simulator runs `results` and charges `traffic`; nothing else
decides what a collective does.

P is the number of devices in the group, N the bytes of one whole tensor.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lib.devices.network import Ways
from lib.devices.pieces import cut, row_major, shard_sizes
from lib.devices.traffic import Traffic, piece_bytes, ring, size_in_bytes

COMBINE = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}
# What torch.distributed has besides, and the programs in `lib.guest` use.
RARELY = {"product": torch.mul, "band": torch.bitwise_and, "bor": torch.bitwise_or, "bxor": torch.bitwise_xor}


def combine(tensors: Sequence[Tensor], op: str) -> Tensor:
    """The tensors combined element by element, in rank order: the same bits whoever computes it."""
    if len(tensors) == 1:
        return tensors[0].clone()
    two = COMBINE.get(op) or RARELY[op]
    result = two(tensors[0], tensors[1])
    for x in tensors[2:]:
        two(result, x, out=result)
    return result


@cache
def can_combine(dtype: torch.dtype, op: str) -> bool:
    """Whether PyTorch can: not for float8 numbers, nor the larger of two complex ones."""
    x = torch.empty(1, dtype=dtype, device="cpu")
    try:
        with _disable_current_modes():  # a clock would count it as the work of the device that asks first
            (COMBINE.get(op) or RARELY[op])(x, x)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def one_each(x: Tensor, parts: int) -> list[Tensor]:
    """`x` for every device: what one writes, no other may see. The memory is copied only when one of them writes."""
    return [x, *(torch._lazy_clone(x) for _ in range(parts - 1))]


@dataclass(frozen=True)
class Collective(ABC):
    """Base of all verbs: what they need to be told, and what must agree between the devices."""

    name: ClassVar[str]

    def may_differ(self) -> int | None:
        """The dim along which the devices' shapes may differ, if any."""
        return None

    def dims(self) -> tuple[int, ...]:
        """The dims this call names; each must exist in the tensor."""
        return ()

    def outcome(self, tensors: list[Tensor]) -> list[Tensor | None]:
        """`results`, row by row: strides belong to one device's memory, and no message carries them to another."""
        return [None if y is None else row_major(y) for y in self.results(tensors)]

    @abstractmethod
    def results(self, tensors: list[Tensor]) -> list[Tensor | None]:
        """What each device gets, from what each device brings (both in rank order)."""

    @abstractmethod
    def traffic(self, tensors: list[Tensor]) -> list[Traffic]:
        """What each device sends and receives, for the same tensors."""

    def seconds(self, tensors: list[Tensor], ways: Ways) -> float:
        """Time on the links of the group, here those of a ring: of the busiest device, in its busier direction."""
        traffic = self.traffic(tensors)
        trips = max(t.messages_sent for t in traffic) // (len(tensors) - 1)
        return ways.ring(trips, max(max(t.bytes_sent, t.bytes_received) for t in traffic))

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in vars(self).items() if value is not None)})"


@dataclass(frozen=True)
class AllReduce(Collective):
    """Every device gets the element-by-element sum (max, min) of all tensors. Ring: 2 (P-1)/P N per device."""

    op: str = "sum"
    name: ClassVar[str] = "all_reduce"

    def results(self, tensors):
        return one_each(combine(tensors, self.op), len(tensors))

    def traffic(self, tensors):
        return [*_two_trips(tensors[0].numel(), tensors[0].element_size(), len(tensors))]


@lru_cache(256)
def _two_trips(numel: int, bytes_each: int, parts: int) -> tuple[Traffic, ...]:
    """A reduce-scatter trip round the ring, then an all-gather trip, over P pieces of the flattened tensor."""
    sizes = [size * bytes_each for size in shard_sizes(numel, parts)]
    whole, steps = sum(sizes), 2 * (parts - 1)
    return tuple(
        Traffic(steps, 2 * whole - sizes[r] - sizes[(r + 1) % parts], steps, 2 * whole - sizes[r - 1] - sizes[r])
        for r in range(parts)
    )


@dataclass(frozen=True)
class AllGather(Collective):
    """Every device gets all tensors, concatenated along `dim` in rank order. Ring: (P-1)/P of the result."""

    dim: int
    name: ClassVar[str] = "all_gather"

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

    def dims(self):
        return (self.dim,)

    def results(self, tensors):
        return [piece.clone() for piece in cut(combine(tensors, self.op), len(tensors), self.dim)]

    def traffic(self, tensors):
        return ring(piece_bytes(tensors[0], len(tensors), self.dim), 0, -1)


@dataclass(frozen=True)
class AllToAll(Collective):
    """Each device cuts its tensor along `split_dim` and sends piece j to device j; what arrives is concatenated along
    `concat_dim` in rank order. Pairwise: (P-1)/P N per device.

    `sizes`, if given, is the table of the pieces' lengths: sizes[i][j] goes from device i to device j."""

    split_dim: int
    concat_dim: int
    sizes: tuple[tuple[int, ...], ...] | None = None
    name: ClassVar[str] = "all_to_all"

    def may_differ(self):
        return self.concat_dim

    def dims(self):
        return (self.split_dim, self.concat_dim)

    def pieces(self, x: Tensor, rank: int, parts: int) -> Sequence[Tensor]:
        """What device `rank` of `parts` sends to each, as views."""
        return cut(x, parts, self.split_dim) if self.sizes is None else x.split(self.sizes[rank], self.split_dim)

    def results(self, tensors):
        pieces = [self.pieces(x, r, len(tensors)) for r, x in enumerate(tensors)]
        return [torch.cat(arrived, self.concat_dim) for arrived in zip(*pieces, strict=True)]

    def _bytes_to(self, tensors):
        # [sender][receiver]
        parts = len(tensors)
        return [[size_in_bytes(piece) for piece in self.pieces(x, r, parts)] for r, x in enumerate(tensors)]

    def seconds(self, tensors, ways):
        return ways.direct(self._bytes_to(tensors))

    def traffic(self, tensors):
        parts, bytes_to = len(tensors), self._bytes_to(tensors)
        received = [sum(column) for column in zip(*bytes_to, strict=True)]
        return [
            Traffic(parts - 1, sum(bytes_to[r]) - bytes_to[r][r], parts - 1, received[r] - bytes_to[r][r])
            for r in range(parts)
        ]
