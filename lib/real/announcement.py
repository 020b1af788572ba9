"""What a real process says to its group before each collective: which verb, and what tensor it brings.

A few numbers, all-gathered over the CPU. From them every process knows what it will receive (pieces may be uneven, and
in a broadcast only one device knows the shape), that all are in the same verb, and what the verb costs.
"""

from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor

from lib.devices.collectives import COMBINE, Collective
from lib.devices.rooted import COLLECTIVES

LENGTH = 24  # numbers in an announcement
MOST_DIMS = LENGTH - 7
_DTYPES = sorted({x for x in vars(torch).values() if isinstance(x, torch.dtype)}, key=str)
_DEVICES = ("cpu", "cuda", "meta")
_OPS = tuple(COMBINE)
_NO_TENSOR = -1
_NOTHING = -1  # an argument that a verb does not have, or that is None


class Table(int):
    """A table of sizes, which an announcement has no room for: a number that is the same for equal tables alone."""

    def __repr__(self) -> str:
        return f"table {self:x}"


def _number(argument: object) -> int:
    if isinstance(argument, str):
        return _OPS.index(argument)
    if isinstance(argument, tuple):
        return hash(argument) % 2**62  # of integers alone: the same in every process
    return _NOTHING if argument is None else argument


def _argument(name: str, number: int) -> object:
    if number == _NOTHING:
        return None
    return _OPS[number] if name == "op" else Table(number) if name == "sizes" else number


@dataclass(frozen=True)
class Announcement:
    """One process's part in a collective; without a tensor, `dtype`, `device` (its type) and `shape` are None."""

    verb: Collective
    dtype: torch.dtype | None = None
    device: str | None = None
    shape: torch.Size | None = None

    @staticmethod
    def of(verb: Collective, x: Tensor | None) -> "Announcement":
        """ValueError when `x` is something that real processes cannot exchange."""
        if x is None:
            return Announcement(verb)
        if x.device.type not in _DEVICES or x.ndim > MOST_DIMS or x.layout != torch.strided:
            raise ValueError(
                f"{verb}: real processes exchange dense tensors of up to {MOST_DIMS} dims, in the memory of CPU or "
                f"CUDA, not a {x.layout} tensor of {x.ndim} dims on {x.device}. Convert it, e.g. with .to('cpu')"
            )
        return Announcement(verb, x.dtype, x.device.type, x.shape)

    @property
    def ndim(self) -> int:
        """How many dims the tensor has."""
        return len(self.shape)

    @property
    def brings(self) -> "Announcement | None":
        """The announced tensor; None when there is none."""
        return None if self.shape is None else self

    def without_data(self) -> Tensor | None:
        """A tensor like the announced one that holds no data: enough to compute costs."""
        return None if self.shape is None else torch.empty(self.shape, dtype=self.dtype, device="meta")

    def encode(self) -> Tensor:
        """(LENGTH,) integers: the verb, its arguments (at most three), dtype, device, number of dims, shape."""
        arguments = [_number(a) for a in astuple(self.verb)]
        numbers = [COLLECTIVES.index(type(self.verb)), *arguments, *[_NOTHING] * (3 - len(arguments))]
        if self.shape is None:
            numbers += [0, 0, _NO_TENSOR]
        else:
            numbers += [_DTYPES.index(self.dtype), _DEVICES.index(self.device), len(self.shape), *self.shape]
        return torch.tensor(numbers + [0] * (LENGTH - len(numbers)), dtype=torch.int64, device="cpu")

    @staticmethod
    def decode(numbers: list[int]) -> "Announcement":
        """The inverse of `encode`."""
        kind, first, second, third, dtype, device, ndim, *shape = numbers
        names = [field.name for field in fields(COLLECTIVES[kind])]
        arguments = zip(names, (first, second, third), strict=False)
        verb = COLLECTIVES[kind](**{name: _argument(name, a) for name, a in arguments})
        if ndim == _NO_TENSOR:
            return Announcement(verb)
        return Announcement(verb, _DTYPES[dtype], _DEVICES[device], torch.Size(shape[:ndim]))
