"""The runs behind a verdict: a program forward, or both ways, and what can be read off them.

A run of the same program on the same trial comes out the same. So what came of it is remembered: of a reader's program
until the verdict is there, of the mistakes that a task knows for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from book.exercises.check.cost import Spent
from book.exercises.check.failed import fault_of, is_unwritten
from book.exercises.check.inputs import drawn
from book.exercises.check.task import Program, Task
from book.exercises.check.trials import SEED, Outcome, Trial, attempt, place
from book.exercises.check.verdict import Fault
from book.exercises.check.wrong import close


@dataclass(frozen=True)
class Tried:
    """What came of a run: an outcome, or the exception that ended it. `lost`: the ranks where nothing went back."""

    outcome: Outcome | None
    error: Exception | None
    lost: tuple[int, ...]


@contextmanager
def one_verdict(task: Task) -> Iterator[None]:
    """Inside, runs are remembered; afterwards, those of the known mistakes alone."""
    try:
        yield
    finally:
        known = {id(program) for program in (task.oracle, *task.slips.values())}
        for key in [key for key in task.remembered if key[1] not in known]:
            del task.remembered[key]


def run(task: Task, program: Program, trial: Trial, both: bool = False) -> Outcome:
    """One run, forward or `both` ways. What the program raises becomes a Fault; where a known mistake stops alike, with
    its sentence."""
    tried = _tried(task, program, trial, both)
    if tried.outcome is not None:
        return tried.outcome
    error = tried.error
    if isinstance(error, Fault) or is_unwritten(error):
        raise error
    slips = task.slips.items() if program not in task.slips.values() else ()
    others = ((text, _tried(task, slip, trial, both).error) for text, slip in slips)
    alike = (text for text, other in others if (type(other), str(other)) == (type(error), str(error)))
    raise fault_of(error, program, trial, next(alike, None)) from None


def _tried(task: Task, program: Program, trial: Trial, both: bool) -> Tried:
    def once() -> Tried:
        upstream = zip(right_gradients(task, trial)[0], task.returns.values(), strict=True) if both else ()
        placed = [place(g, at, trial.devices) for g, at in upstream]
        lost = []

        def backward(rank: int, returned: Any) -> None:
            # A result that needs no gradient here may be right: who owns no token has no row in it.
            pairs = [(y, pieces[rank]) for y, pieces in zip(several(returned), placed, strict=True) if y.requires_grad]
            if pairs:
                torch.autograd.backward(*zip(*pairs, strict=True))
            else:
                lost.append(rank)

        after = {"backward": backward} if both else {}
        try:
            return Tried(attempt(program, trial, task.inputs, task.gradients, **after), None, tuple(lost))
        except Exception as error:
            return Tried(None, error, tuple(lost))

    return _remembered(task, "both ways" if both else "forward", program, trial, once)


def _remembered(task: Task, what: str, program: Callable[..., Any], trial: Trial, make: Callable[[], Any]) -> Any:
    key = what, id(program), trial
    if key not in task.remembered:
        task.remembered[key] = program, make()  # as long as it is kept, nothing else can have its id
    return task.remembered[key][1]


def rights(task: Task, trial: Trial) -> tuple[Tensor, ...]:
    """The right values, whole."""
    return _remembered(task, "values", task.oracle, trial, lambda: several(task.oracle(*trial.inputs.values())))


def right_gradients(task: Task, trial: Trial) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The gradients of the results, random, and the right ones of the inputs, by name: all of them whole."""

    def once() -> tuple[list[Tensor], dict[str, Tensor]]:
        whole = {name: x.clone().requires_grad_(name in task.gradients) for name, x in trial.inputs.items()}
        results = several(task.oracle(*whole.values()))
        upstream = [drawn(y.shape, torch.Generator().manual_seed(SEED)) for y in results]
        torch.autograd.backward(results, upstream)
        return upstream, {name: whole[name].grad for name in task.gradients}

    return _remembered(task, "gradients", task.oracle, trial, once)


def both_ways(task: Task, program: Program, trial: Trial) -> tuple[Outcome, dict[str, Tensor]]:
    """A run forward and backward, and the right gradients, whole."""
    lost = _tried(task, program, trial, both=True).lost
    try:
        outcome = run(task, program, trial, both=True)
    except Fault as fault:
        if not lost or len(lost) == trial.devices or not fault.details[0].startswith("DeadlockError"):
            raise
        raise Fault(
            f"stops in the backward on {trial}.",
            *fault.details,
            f"Cause: on rank {min(lost)} no input is connected with the result, so its backward calls nothing, and the "
            "others wait for it. What is empty must go the same way as what is not.",
        ) from None
    if len(lost) == trial.devices:
        raise Fault(
            f"loses the gradient on {trial}.",
            "rank 0: no input is connected with the result. Was something detached, or made under no_grad?",
        )
    return outcome, right_gradients(task, trial)[1]


def gradients_of(name: str, task: Task, outcome: Outcome, right: dict[str, Tensor]) -> list[Tensor | None]:
    """By rank. Where the right gradient is zero, none at all is as good."""
    expected = place(right[name], task.inputs[name].at, len(outcome.handed))
    grads = [mine[name].grad for mine in outcome.handed]
    grads = [g.to_dense() if g is not None and g.is_sparse else g for g in grads]  # as of F.embedding(..., sparse=True)
    return [x if g is None and not x.any() else g for g, x in zip(grads, expected, strict=True)]


def columns(task: Task, outcome: Outcome) -> list[list[Any]]:
    """For each value returned, what every rank has of it."""
    return list(map(list, zip(*outcome.returned, strict=True))) if len(task.returns) > 1 else [outcome.returned]


def several(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One value, or several, as a tuple."""
    return value if isinstance(value, tuple) else tuple(value) if isinstance(value, list) else (value,)


def is_right(task: Task, program: Program, trial: Trial) -> bool:
    """Whether a known program returns what it should: then only its price is to be spoken of."""
    try:
        given = columns(task, run(task, program, trial))
    except Fault:
        return False
    placed = [
        place(whole, at, trial.devices) for whole, at in zip(rights(task, trial), task.returns.values(), strict=True)
    ]
    return all(close(a, b) for mine, right in zip(given, placed, strict=True) for a, b in zip(mine, right, strict=True))


def spent_forward(task: Task, program: Program, trial: Trial) -> list[Spent]:
    """What every device called in the forward, by rank."""
    return _spent(run(task, program, trial))


def _spent(outcome: Outcome) -> list[Spent]:
    return [Spent.of(outcome.meters, rank) for rank in range(outcome.meters.size)]


def spent_backward(task: Task, program: Program, trial: Trial) -> list[Spent]:
    """What every device called in the backward alone, by rank."""
    before, (both, _) = spent_forward(task, program, trial), both_ways(task, program, trial)
    return [b - a for a, b in zip(before, _spent(both), strict=True)]
