"""What a page shows of an exercise: its statement, the cell to start from, hints and solution, folded."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from book.exercises.check.verdict import Folded, Verdict


class Shown:
    """Made of four fields: `solution` (its docstring states the task), `oracle`, three `hints`, and `broken`.

    `broken` is the program that the reader is given when it is to be mended, or None. Who inherits says `verdict`.
    """

    solution: Callable[..., Any]
    oracle: Callable[..., Any]
    hints: tuple[str, str, str]
    broken: Callable[..., Any] | None

    def verdict(self, program: Callable[..., Any]) -> Verdict:
        """What is to be said of the reader's program."""
        raise NotImplementedError

    def check(self, program: Callable[..., Any], required: bool = False) -> Verdict:
        """Judges the reader's program. With `required`, raises AssertionError unless it is correct."""
        verdict = self.verdict(program)
        if required and not verdict.passed:
            raise AssertionError(str(verdict))
        return verdict

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


def head(function: Callable[..., Any]) -> str:
    """The first line of a function, without annotations: a notebook need not import their names."""
    return f"def {function.__name__}({', '.join(inspect.signature(function).parameters)}):"


def source(function: Callable[..., Any]) -> str:
    """The source of a function without its decorators, annotations and docstring; comments are kept."""
    text = textwrap.dedent(inspect.getsource(function))
    tree = ast.parse(text).body[0]
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    return "\n".join([head(function), *text.splitlines()[body[0].lineno - 1 :]])
