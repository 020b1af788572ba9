"""Exercises that answer at once: the reader writes the program of one device, and `check` says what is wrong with it.

    tasks.column_forward.check(column_forward)

An exercise is its own solution, with what is needed to judge another one: the one-device oracle, the inputs and
where they are, where the result must be, and what may be sent. Judged are, in this order: the values on every number
of devices, the inputs (untouched?), the gradients, the bytes and the work. What the statement does not ask for is no
reason to refuse: it is told beside "correct".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from book.exercises.check.judge import judge
from book.exercises.check.shown import Shown
from book.exercises.check.task import Program, Task
from book.exercises.check.verdict import Verdict


@dataclass(frozen=True, kw_only=True, repr=False)
class Exercise(Shown, Task):
    """A task that a page can show: with hints, and a check that asks the judge."""

    hints: tuple[str, str, str]
    broken: Program | None = None

    def verdict(self, program: Program) -> Verdict:
        """What the judge says."""
        return judge(self, program)


def exercise(**parts: Any) -> Callable[[Program], Exercise]:
    """Turns a solution into the exercise that it solves; `parts` are the fields of `Exercise`."""
    return lambda solution: Exercise(solution=solution, **parts)
