"""The mistakes that an exercise knows: which of them gives what the reader's program gives, here and elsewhere?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from book.exercises.check.task import Program
from book.exercises.check.trials import Trial
from book.exercises.check.wrong import close

Values = Sequence[Any]  # of one result or one gradient, by rank
Look = Callable[[Program, Trial], Values]  # runs a program, and takes the value in question


def recognized(
    program: Program,
    trial: Trial,
    others: Sequence[Trial],
    look: Look,
    slips: dict[str, Callable[[Trial], Values]],
    formulas: dict[str, Callable[[Trial], Values]],
    rank: int,
    what: str,
) -> str | None:
    """The sentence of the mistake that explains `trial`, where `rank` is the first one to have `what` wrong; None if
    none does.

    A slip is a whole program: it must give the same on every rank. A formula is of several devices, and need only give
    what `rank` has. One trial may look like several mistakes, so only one that every other trial speaks for is taken;
    else a wrong cause would be named.
    """
    mine = look(program, trial)
    found = [(text, made, all) for text, made in slips.items() if _alike(mine, _quiet(made, trial), all)]
    for text, made in formulas.items():
        if close(mine[rank], _quiet(made, trial)[rank]):
            # Other values may be wrong on rank 0 as well: they were not looked at yet.
            found.append((text + (f" (On rank 0, {what} is right.)" if rank else ""), made, any))
    for text, made, how in found:
        elsewhere = [t for t in others if how is all or t.devices > 1]
        pairs = ((_quiet(lambda t: look(program, t), t), _quiet(made, t)) for t in elsewhere)
        if all(_alike(a, b, how) for a, b in pairs if _shapes(a) == _shapes(b)):
            return text
    return None


def _alike(mine: Values, made: Values, how: Callable[[Any], bool]) -> bool:
    return len(mine) == len(made) and how(
        close(a, b) or (_nothing(a) and _nothing(b)) for a, b in zip(mine, made, strict=True)
    )


def _nothing(value: Any) -> bool:
    """No gradient, or one of zeros: a matter of how the same thing was written."""
    return value is None or (isinstance(value, Tensor) and not value.any())


def _quiet(made: Callable[[Trial], Values], trial: Trial) -> Values:
    """What comes of it, or nothing where it does not run."""
    try:
        return made(trial)
    except Exception:
        return [None] * trial.devices


def _shapes(values: Values) -> list[Any]:
    return [None if _nothing(value) else getattr(value, "shape", None) for value in values]
