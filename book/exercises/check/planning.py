"""Exercises whose answer is a plan, such as a schedule: it is judged by what it leads to, not by how it looks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from book.exercises.check.answers import answer, plain
from book.exercises.check.failed import kind
from book.exercises.check.shown import Shown
from book.exercises.check.trials import one_core
from book.exercises.check.verdict import Fault, Verdict


@dataclass(frozen=True, kw_only=True, repr=False)
class Planning(Shown):
    """`judge(given, right, *case)` raises Fault when what the reader's function gives for `case` is no good answer;
    `right` is what `oracle` gives. `slips` are known wrong functions: who gives the same in every case is told the
    sentence."""

    solution: Callable[..., Any]
    oracle: Callable[..., Any]
    judge: Callable[..., None]
    hints: tuple[str, str, str]
    cases: tuple[tuple[Any, ...], ...]
    praise: str
    slips: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    broken: Callable[..., Any] | None = None

    def verdict(self, program: Callable[..., Any]) -> Verdict:
        """What the judge says, of the first case that is wrong."""
        if not callable(program):
            return Verdict(
                self.name, "wrong", "cannot be checked.", (f"check needs the function itself, given {kind(program)}",)
            )
        for case in self.cases:
            try:
                with one_core():
                    given = answer(program, case, self.told(case))
                    self._judged(program, given, case)
            except NotImplementedError:
                return Verdict(self.name, "waiting", "is waiting for your code.")
            except Fault as fault:
                return Verdict(self.name, "wrong", fault.sentence, fault.details)
        return Verdict(self.name, "correct", self.praise)

    def _judged(self, program: Callable[..., Any], given: Any, case: tuple[Any, ...]) -> None:
        right = self.oracle(*case)
        try:
            self.judge(given, right, *case)
        except Fault as fault:
            cause = self._cause(program)
            raise Fault(fault.sentence, *fault.details, *[f"Cause: {cause}"] * bool(cause)) from None
        except NotImplementedError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"  # no judge foresees all that can be returned
            raise Fault(
                f"is wrong for {self.told(case)}.", f"something in it is not what was asked for: {why}"
            ) from None

    def _cause(self, program: Callable[..., Any]) -> str | None:
        """The slip that gives the same in every case: one that fits a single case only may be another."""
        given = cache(lambda number: plain(program(*self.cases[number])))  # a program may run on many devices
        for sentence, slip in self.slips.items():
            with suppress(Exception):  # it stops for one of the cases, or compares like an array: not this one
                if all(_alike(slip(*case), given(number)) for number, case in enumerate(self.cases)):
                    return sentence
        return None

    def told(self, case: tuple[Any, ...]) -> str:
        """The case in words: "p=4, m=8"; what is long is left out."""
        names = inspect.signature(self.solution).parameters
        pairs = zip(names, case, strict=True)
        return ", ".join(f"{name}={value}" for name, value in pairs if len(repr(value)) < 30) or "the first case"


def _alike(a: Any, b: Any) -> bool:
    """Numbers with a fraction need not be the same to the last digit: the reader may have another order of sums."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, int | float) and isinstance(b, int | float) and float in (type(a), type(b)):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


def planning(**parts: Any) -> Callable[[Callable[..., Any]], Planning]:
    """Turns a solution into the exercise that it solves; `parts` are the fields of `Planning`."""
    return lambda solution: Planning(solution=solution, **parts)
