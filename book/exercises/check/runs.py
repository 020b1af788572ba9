"""The runs behind a verdict: a program forward, or both ways, and what can be read off them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from book.exercises.check.cost import Spent
from book.exercises.check.failed import fault_of
from book.exercises.check.inputs import drawn
from book.exercises.check.task import Program, Task
from book.exercises.check.trials import Outcome, Trial, attempt, place
from book.exercises.check.verdict import Fault
from book.exercises.check.wrong import close

SEED = 2


def run(task: Task, program: Program, trial: Trial, backward: Callable = lambda *_: None) -> Outcome:
    """One run. What the program raises becomes a Fault; where a known mistake stops alike, with its sentence."""

    def once(answer: Program) -> Outcome:
        return attempt(answer, trial, task.inputs, task.gradients, backward, watch=task.ring or task.steps is not None)

    try:
        return once(program)
    except (NotImplementedError, Fault):
        raise
    except Exception as error:
        known = None
        for text, slip in task.slips.items() if program not in task.slips.values() else ():
            try:
                once(slip)
            except Exception as other:
                known = known or (text if (type(other), str(other)) == (type(error), str(error)) else None)
        raise fault_of(error, program, trial, known) from None


def both_ways(task: Task, program: Program, trial: Trial) -> tuple[Outcome, dict[str, Tensor]]:
    """A run forward and backward, and the right gradients, whole."""
    whole = {name: x.clone().requires_grad_(name in task.gradients) for name, x in trial.inputs.items()}
    results = several(task.oracle(*whole.values()))
    upstream = [drawn(y.shape, torch.Generator().manual_seed(SEED)) for y in results]
    torch.autograd.backward(results, upstream)
    placed = [place(g, at, trial.devices) for g, at in zip(upstream, task.returns.values(), strict=True)]
    lost = []

    def backward(rank: int, returned: Any) -> None:
        # A result that needs no gradient here may be right: who owns no token has no row in it.
        pairs = [(y, pieces[rank]) for y, pieces in zip(several(returned), placed, strict=True) if y.requires_grad]
        if pairs:
            torch.autograd.backward(*zip(*pairs, strict=True))
        else:
            lost.append(rank)

    try:
        outcome = run(task, program, trial, backward)
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
    return outcome, {name: whole[name].grad for name in task.gradients}


def gradients_of(name: str, task: Task, outcome: Outcome, right: dict[str, Tensor]) -> list[Tensor | None]:
    """By rank. Where the right gradient is zero, none at all is as good."""
    expected = place(right[name], task.inputs[name].at, len(outcome.handed))
    grads = [mine[name].grad for mine in outcome.handed]
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
    wholes = several(task.oracle(*trial.inputs.values()))
    placed = [place(whole, at, trial.devices) for whole, at in zip(wholes, task.returns.values(), strict=True)]
    return all(close(a, b) for mine, right in zip(given, placed, strict=True) for a, b in zip(mine, right, strict=True))


def spent(outcome: Outcome) -> list[Spent]:
    """What every device called, by rank."""
    return [Spent.of(outcome.meters, rank) for rank in range(outcome.meters.size)]


def spent_backward(task: Task, program: Program, trial: Trial) -> list[Spent]:
    """What every device called in the backward alone, by rank."""
    before, (both, _) = spent(run(task, program, trial)), both_ways(task, program, trial)
    return [b - a for a, b in zip(before, spent(both), strict=True)]
