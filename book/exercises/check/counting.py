"""Exercises whose answer is a formula: the reader's function is compared with what the engine counts in real runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from book.exercises.check.answers import answer
from book.exercises.check.failed import kind
from book.exercises.check.shown import Shown
from book.exercises.check.trials import one_core
from book.exercises.check.verdict import Fault, Verdict
from lib.devices.counts import counted

Slips = Mapping[str, Callable[..., int]]  # a sentence: f(*numbers), the count that its mistake gives


@dataclass(frozen=True, kw_only=True, repr=False)
class Counting(Shown):
    """`oracle(*numbers)` runs the programs that are counted, and returns one count for each name in `returns`."""

    solution: Callable[..., Any]  # formula(*numbers)
    oracle: Callable[..., tuple[int, ...]]
    returns: tuple[str, ...]
    hints: tuple[str, str, str]
    cases: tuple[tuple[int, ...], ...]
    slips: Mapping[str, Slips] = field(default_factory=dict)  # for each name in `returns`
    broken: Callable[..., Any] | None = None
    counted: str = "the engine counted"  # who says what is right

    def verdict(self, program: Callable[..., Any]) -> Verdict:
        """What the counts of the engine say to the reader's formula."""
        try:
            with one_core():
                return self._compared(program)
        except NotImplementedError:
            return Verdict(self.name, "waiting", "is waiting for your code.")
        except Fault as fault:
            return Verdict(self.name, "wrong", fault.sentence, fault.details)

    @property
    def numbers(self) -> list[str]:
        """What the formula is of."""
        return list(inspect.signature(self.solution).parameters)

    @cached_property
    def rights(self) -> list[tuple[int, ...]]:
        """What is right, for each case. Counted once: the engine counts the same for every answer."""
        return [self.oracle(*case) for case in self.cases]

    def _compared(self, program: Callable[..., Any]) -> Verdict:
        called = f"{self.name}({', '.join(self.numbers)})"
        if not callable(program):
            raise Fault("cannot be checked.", f"check needs the function {called} itself, given {kind(program)}")
        for case, rights in zip(self.cases, self.rights, strict=True):
            on = ", ".join(f"{name}={number}" for name, number in zip(self.numbers, case, strict=True))
            given = self._given(program, case, on)
            for name, mine, right in zip(self.returns, given, rights, strict=True):
                if mine != right:
                    cause = self._cause(program, name)
                    raise Fault(f"is wrong for {on}.", f"{name}: {self.counted} {right:,}, given {mine:,}", cause)
        return Verdict(
            self.name, "correct", f"is right: {self.counted} the same, in {len(self.cases)} models of other sizes."
        )

    def _cause(self, program: Callable[..., Any], name: str) -> str | None:
        """The slip that gives the reader's number in every case: one that fits a single case only may be another."""
        try:
            every = [self._given(program, case, "") for case in self.cases]
        except (Fault, NotImplementedError):
            return None
        mine = [given[self.returns.index(name)] for given in every]
        if all(sorted(given) == sorted(right) for given, right in zip(every, self.rights, strict=True)):
            return f"Cause: the right numbers in another order. Return {', '.join(self.returns)}."
        for sentence, slip in self.slips.get(name, {}).items():
            if all(slip(*case) == number for case, number in zip(self.cases, mine, strict=True)):
                return f"Cause: {sentence}"
        return None

    def _given(self, program: Callable[..., Any], case: tuple[int, ...], on: str) -> tuple[Any, ...]:
        given = answer(program, case, on)
        if len(self.returns) == 1 and not isinstance(given, tuple | list):
            given = (given,)
        if not isinstance(given, tuple | list) or len(given) != len(self.returns):
            asked = " and ".join(self.returns)
            told = counted(len(given), "value") if isinstance(given, tuple | list) else kind(given)
            raise Fault(f"is wrong for {on}.", f"expected {asked}, given {told}")
        for name, number in zip(self.returns, given, strict=True):
            if not isinstance(number, int | float):
                told = repr(number) if isinstance(number, str) else kind(number)
                raise Fault(f"is wrong for {on}.", f"{name}: expected a number, given {told}")
        return tuple(given)


def counting(**parts: Any) -> Callable[[Callable[..., Any]], Counting]:
    """Turns a formula into the exercise that it solves; `parts` are the fields of `Counting`."""
    return lambda solution: Counting(solution=solution, **parts)
