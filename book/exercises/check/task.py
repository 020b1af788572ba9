"""A task, as data: all that it takes to judge an answer. The judge reads it; nothing here knows the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.inputs import Input
from book.exercises.check.trials import SEED, Trial, trials
from lib.parallel.sharding.placement import Placement

Program = Callable[..., Any]  # program(group, *inputs)


@dataclass(frozen=True, kw_only=True, repr=False)
class Task:
    """What a program is given, what it must return and where, and what it may send.

    A limit that the statement does not name is no reason to refuse an answer: `limited` and `must_refuse` say which
    are named. What goes beyond one that is not is told beside "correct".
    """

    solution: Program
    oracle: Callable[..., Tensor | tuple[Tensor, ...]]  # the same on one device, of the whole inputs
    inputs: Mapping[str, Input]
    returns: Mapping[str, Placement]  # a name for each value returned, and where it must be
    gradients: tuple[str, ...] = ()  # the inputs whose gradients are compared
    forward: tuple[Talk, ...] = ()
    backward: tuple[Talk, ...] = ()
    limited: bool = True  # whether the statement limits what is sent
    only: tuple[str, ...] = ()  # the verbs that may be called, if not all
    ring: bool = False  # whether a device may send to its neighbors only
    steps: Callable[[int], int] | None = None  # how many messages after each other are enough, for P devices
    devices: tuple[int, ...] = (1, 2, 3, 4)
    parts: Mapping[str, Placement] = field(default_factory=dict)  # of a whole input, the part that a device may use
    empty: bool = False  # whether a dim may be shorter than the devices are many, so that some hold nothing of it
    # Known mistakes, and what is said of each: as a formula f(P, *inputs) for the whole result, or as a program.
    mistakes: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    slips: Mapping[str, Program] = field(default_factory=dict)
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # a sentence: other dims for some inputs
    must_refuse: bool = False  # whether the statement asks for an error there

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """What every program is tried on. Drawn once."""
        return tuple(trials(self.inputs, self.devices, SEED, self.empty))

    @cached_property
    def remembered(self) -> dict[Any, Any]:
        """What need not be run again: see `runs`."""
        return {}

    @property
    def name(self) -> str:
        """The name of the function that the reader writes."""
        return self.solution.__name__
