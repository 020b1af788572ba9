"""What a process has one of and each device must have its own: random streams, and the default dtype.

A device finds its own when it gets the turn, and lays it aside when it gives the turn away.
"""

import ctypes
import random
import sys
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Owner(Protocol):
    """Keeps something of the process for each device. A program that has more than `Owned` brings owners of its own:
    `program.owners(size)` is asked for them."""

    def take_up(self, rank: int) -> None:
        """Device `rank` gets the turn: what it has for itself is the process's now. The first call begins the run."""

    def lay_aside(self, rank: int) -> None:
        """Device `rank` gives the turn away."""

    def give_back(self, failed: bool) -> None:
        """After the run, the process has what it had before. Called also when the run never began."""


class Own(NamedTuple):
    """One device's. `python` and `numpy` are None as long as no device has drawn from their streams."""

    torch: Tensor
    dtype: torch.dtype
    python: Any = None
    numpy: Any = None


class Owned:
    """The `Own` of all devices of a run. All start with the caller's."""

    def __init__(self, size: int):
        self._caller = Own(torch.default_generator.get_state(), torch.get_default_dtype(), random.getstate(), _numpy())
        self._marks = _marks()
        self._at_first = _read(self._marks)
        # A second normal number may be kept outside of the stream; to draw it does not show there.
        self._touched = bool(self._caller.numpy and self._caller.numpy["has_gauss"])
        self._mine = [self._caller] * size

    def lay_aside(self, rank: int) -> None:
        """Device `rank` gives the turn away."""
        if not self._touched:
            self._touched = _read(self._marks) != self._at_first
        touched = (random.getstate(), _numpy()) if self._touched else (None, None)
        self._mine[rank] = Own(torch.default_generator.get_state(), torch.get_default_dtype(), *touched)

    def take_up(self, rank: int) -> None:
        """Device `rank` gets the turn."""
        self._set(self._mine[rank])

    def give_back(self, failed: bool) -> None:
        """After the run: the caller's streams go on where rank 0's stopped; after a failure they are as before."""
        self._set((self._caller if failed else self._mine[0])._replace(dtype=self._caller.dtype))

    def _set(self, own: Own) -> None:
        torch.default_generator.set_state(own.torch)
        if torch.get_default_dtype() != own.dtype:
            torch.set_default_dtype(own.dtype)
        if self._touched:
            random.setstate(own.python or self._caller.python)
            if self._caller.numpy is not None:
                sys.modules["numpy"].random.set_state(own.numpy or self._caller.numpy)


def _numpy() -> Any:
    numpy = sys.modules.get("numpy")  # who has not imported it does not draw from it
    return None if numpy is None else numpy.random.get_state(legacy=False)


def _marks() -> list[ctypes.Array]:
    """A few bytes of Python's and NumPy's streams as they stand in memory, which change with every draw and every seed.
    To look at them takes less than a microsecond at each turn; to copy the streams takes a hundred."""
    # Where CPython keeps them: behind the head of the object, the index of the next number, and then the numbers.
    marks = [(ctypes.c_char * 16).from_address(id(random._inst) + object.__basicsize__)]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        generator = numpy.random.mtrand._rand._bit_generator
        if isinstance(generator, numpy.random.MT19937):
            address = generator.ctypes.state_address  # 624 numbers, then the index of the next one
            marks += [(ctypes.c_char * n).from_address(address + at) for n, at in ((8, 0), (4, 4 * 624))]
            marks[-1].keeps = generator  # as long as its memory is looked at
    return marks


def _read(marks: list[ctypes.Array]) -> list:
    return [random._inst.gauss_next, *[mark.raw for mark in marks]]
