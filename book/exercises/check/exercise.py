"""Exercises that answer at once: the reader writes the program of one device, and `check` says what is wrong with it.

    tasks.column_forward.check(column_forward)

An exercise is its own solution, with what is needed to judge another one: the one-device oracle, the inputs and
where they are, where the result must be, and what may be sent. Judged are, in this order: the values on every number
of devices, the inputs (untouched?), the gradients, the bytes, the work, and a case that must be refused.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.judge import judge
from book.exercises.check.trials import Input
from book.exercises.check.verdict import Folded, Verdict
from lib.parallel.sharding.placement import Placement


@dataclass(frozen=True, repr=False)
class Exercise:
    """A task, and all it takes to judge an answer. Its docstring states it; made by `exercise` from the solution."""

    solution: Callable[..., Any]  # program(group, *inputs)
    oracle: Callable[..., Tensor | tuple[Tensor, ...]]  # the same on one device, of the whole inputs
    inputs: Mapping[str, Input]
    returns: Mapping[str, Placement]  # a name for each value returned, and where it must be
    hints: tuple[str, str, str]
    gradients: tuple[str, ...] = ()  # the inputs whose gradients are compared
    forward: tuple[Talk, ...] = ()
    backward: tuple[Talk, ...] = ()
    mistakes: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)  # a sentence: f(P, *inputs) it explains
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # a sentence: other dims for some inputs
    devices: tuple[int, ...] = (1, 2, 3, 4)
    only: tuple[str, ...] = ()  # the verbs that may be called, if not all
    steps: Callable[[int], int] | None = None  # how many messages after each other are enough, for P devices
    broken: Callable[..., Any] | None = None  # the program that the reader is given, when it is to be mended

    @property
    def name(self) -> str:
        """The name of the function that the reader writes."""
        return self.solution.__name__

    @property
    def statement(self) -> str:
        """What is asked for."""
        return inspect.getdoc(self.solution) or ""

    @property
    def stub(self) -> str:
        """The source of the cell in which the reader starts."""
        if self.broken is not None:
            return source(self.broken).replace(self.broken.__name__, self.name, 1) + "\n"
        first = self.statement.splitlines()[0]
        return f'{head(self.solution)}\n    """{first}"""\n    ...  # your code\n'

    def check(self, program: Callable[..., Any], required: bool = False) -> Verdict:
        """Judges the reader's program. With `required`, raises AssertionError unless it is correct."""
        verdict = judge(self, program)
        if required and not verdict.passed:
            raise AssertionError(str(verdict))
        return verdict

    def hint(self, number: int) -> Folded:
        """Hint 1, 2 or 3: where to look, what to use, nearly the answer."""
        if number not in (1, 2, 3):
            raise ValueError(f"there is no hint {number!r}: {self.name} has the hints 1, 2 and 3")
        return Folded(f"Hint {number} of 3", self.hints[number - 1])

    def show_solution(self) -> Folded:
        """The solution's source, folded. It is the code that the tests run."""
        return Folded("Solution", source(self.solution), code=True)

    def show_oracle(self) -> Folded:
        """The same on one device: what every answer is compared with, folded."""
        return Folded("The same on one device", source(self.oracle), code=True)

    def __repr__(self) -> str:
        return f"Exercise {head(self.solution)}\n{textwrap.indent(self.statement, '    ')}"


def exercise(**parts: Any) -> Callable[[Callable[..., Any]], Exercise]:
    """Turns a solution into the exercise that it solves; `parts` are the fields of `Exercise`."""
    return lambda solution: Exercise(solution, **parts)


def head(function: Callable[..., Any]) -> str:
    """The first line of a function, without annotations: a notebook need not import their names."""
    return f"def {function.__name__}({', '.join(inspect.signature(function).parameters)}):"


def source(function: Callable[..., Any]) -> str:
    """The source of a function without its decorators, annotations and docstring; comments are kept."""
    text = textwrap.dedent(inspect.getsource(function))
    tree = ast.parse(text).body[0]
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    return "\n".join([head(function), *text.splitlines()[body[0].lineno - 1 :]])
