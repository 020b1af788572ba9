"""What a process has one of and each device must have its own: random streams, and the default dtype.

A device finds its own when it gets the turn, and lays it aside when it gives the turn away.
"""

import ctypes
import random
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Owner(Protocol):
    """Keeps something of the process for each device. A program that has more than `Owned` brings owners of its own:
    `program.owners(size)` is asked for them."""

    def take_up(self, rank: int) -> None:
        """Device `rank` gets the turn: what it has for itself is the process's now. The first call begins the run."""

    # Device `rank` gives the turn away: what is its own now is kept. None: nothing has to be done.
    lay_aside: Callable[[int], None] | None

    def give_back(self, failed: bool) -> None:
        """After the run, the process has what it had before. Called also when the run never began."""


class Owners:
    """All owners of a run, as one."""

    def __init__(self, owners: list[Owner]):
        self._owners: list[Owner] = []
        self._taking_up: list[Callable[[int], None]] = []  # called at every turn
        self._laying_aside: list[Callable[[int], None]] = []
        self.add(owners)

    def add(self, owners: list[Owner]) -> None:
        """Before the run."""
        self._owners += owners
        self._taking_up += [owner.take_up for owner in owners]
        self._laying_aside += [owner.lay_aside for owner in owners if owner.lay_aside is not None]

    def take_up(self, rank: int) -> None:
        """Device `rank` gets the turn."""
        for take_up in self._taking_up:
            take_up(rank)

    def lay_aside(self, rank: int) -> None:
        """Device `rank` gives it away."""
        for lay_aside in self._laying_aside:
            lay_aside(rank)

    def give_back(self, failed: bool) -> None:
        """After the run: what the devices had for themselves is the caller's again."""
        with ExitStack() as last_first:
            for owner in self._owners:
                last_first.callback(owner.give_back, failed)


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
