"""What a process has one of and each device must have its own: random streams, and the default dtype.

A device finds its own when it gets the turn, and lays it aside when it gives the turn away.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from lib.devices.engine.draws import kept


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


class Owned:
    """What all devices of a run have of `kept()`. All start with the caller's."""

    def __init__(self, size: int):
        self._things = kept()
        self._states = self._caller = [thing.read() for thing in self._things]  # those of the process, at the moment
        self._marks = self._look()
        self._mine = [(self._states, self._marks)] * size

    def lay_aside(self, rank: int) -> None:
        """Device `rank` gives the turn away. What it has not changed is not read again."""
        marks = self._look()
        if marks != self._marks:
            whole = zip(self._things, self._states, self._marks, marks, strict=True)
            self._states = [state if old == new else thing.read() for thing, state, old, new in whole]
            self._marks = marks
        self._mine[rank] = self._states, self._marks

    def take_up(self, rank: int) -> None:
        """Device `rank` gets the turn."""
        states, marks = self._mine[rank]
        self._set(states)
        self._marks = marks  # those of these states: to look again would cost as much as the rest

    def give_back(self, failed: bool) -> None:
        """After the run: the caller's streams go on where rank 0's stopped; after a failure they are as before."""
        _, *streams = self._caller if failed else self._mine[0][0]
        self._set([self._caller[0], *streams])

    def _look(self) -> list[Any]:
        return [thing.mark() for thing in self._things]

    def _set(self, mine: list[Any]) -> None:
        if mine is not self._states:  # else nobody has drawn since this device had the turn
            for thing, new, old in zip(self._things, mine, self._states, strict=True):
                if new is not old:
                    thing.write(new)
            self._states = mine
