"""Compares a program with one device, values and gradients: the first that differ are a Fault, with their cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from book.exercises.check.causes import cause_of
from book.exercises.check.failed import kind, oddness
from book.exercises.check.finite import Births, began, watched
from book.exercises.check.known import Look, recognized
from book.exercises.check.runs import both_ways, columns, gradients_of, is_right, rights, run, several
from book.exercises.check.task import Program, Task
from book.exercises.check.trials import Trial, hand_over, place
from book.exercises.check.verdict import Fault
from book.exercises.check.wrong import Wrong, close, differs, same
from lib.devices.counts import counted

ROUNDED = (
    "Right to 7 digits: there is a float32 on the way (torch.tensor(2.0) is one; say dtype=x.dtype), or a small eps "
    "was added."
)


def judge_values(task: Task, program: Program, trial: Trial, every: list[Trial], remarks: dict[str, None]) -> None:
    """Judges what is returned, and that the inputs are as they were."""
    outcome = run(task, program, trial)
    names, wholes = list(task.returns), rights(task, trial)
    for rank, returned in enumerate(outcome.returned):
        if returned is ...:
            raise NotImplementedError
        if len(names) > 1 and not (isinstance(returned, tuple | list) and len(returned) == len(names)):
            given = counted(len(returned), "value") if isinstance(returned, tuple | list) else kind(returned)
            raise Fault(f"is wrong on {trial}.", f"rank {rank}: expected {' and '.join(names)}, given {given}")
        for name, y in zip(names, several(returned), strict=False):
            if isinstance(y, Tensor) and (odd := oddness(y)):
                raise Fault(
                    f"is wrong on {trial}.",
                    f"{name} on rank {rank} {odd}. Return an ordinary tensor, as the inputs are.",
                )
    all_given = columns(task, outcome)
    sent = outcome.meters.count().bytes_sent if task.forward else 1  # where nothing need be sent, silence is no cause
    for i, (name, given, whole) in enumerate(zip(names, all_given, wholes, strict=True)):

        def look(answer: Program, on: Trial, i: int = i) -> list[Any]:
            return columns(task, run(task, answer, on))[i]

        def look_at_all(answer: Program, on: Trial) -> list[Any]:
            return sum(columns(task, run(task, answer, on)), [])

        wrong = Wrong(name, None, list(given), whole, task.returns[name], sent).in_sum()
        _compare(task, program, trial, every, wrong, look, remarks, look_at_all if len(names) > 1 else None)
    for name, at in ((name, given.at) for name, given in task.inputs.items()):
        for rank, before in enumerate(hand_over(trial.inputs[name], at, trial.devices)):
            if not same(outcome.handed[rank][name], before):
                raise Fault(
                    f"changes its input {name} in place (rank {rank}), on {trial}.",
                    f"The caller may still need it: make a new tensor, {name} = {name} + 1 instead of {name} += 1.",
                )


def judge_gradients(task: Task, program: Program, trial: Trial, every: list[Trial], remarks: dict[str, None]) -> None:
    """Judges the gradients of the inputs for a random gradient of the result."""
    outcome, right = both_ways(task, program, trial)
    for name in task.gradients:

        def look(answer: Program, on: Trial, name: str = name) -> list[Tensor | None]:
            return gradients_of(name, task, *both_ways(task, answer, on))

        given = gradients_of(name, task, outcome, right)
        wrong = Wrong(f"the gradient of {name}", name, given, right[name], task.inputs[name].at, 1)
        _compare(task, program, trial, every, wrong, look, remarks)


def _compare(
    task: Task,
    program: Program,
    trial: Trial,
    every: list[Trial],
    wrong: Wrong,
    look: Look,
    remarks: dict[str, None],
    look_at_all: Look | None = None,
) -> None:
    """Raises Fault with the first rank and index that differ, both values, and the cause if one is recognized.

    `look` takes the value in question, `look_at_all` all that is returned: what is the same in all is the better cause.
    """
    rank = wrong.rank
    if rank is None:
        if wrong.rounded:
            remarks[ROUNDED] = None
        return
    mine, right = wrong.mine, wrong.right
    if not isinstance(mine, Tensor):
        found = f": expected a tensor of shape {tuple(right.shape)}, given {kind(mine)}"
    elif mine.shape != right.shape:
        found = f": expected shape {tuple(right.shape)}, given shape {tuple(mine.shape)}"
    elif mine.dtype != right.dtype:
        found = f": expected {right.dtype}, given {mine.dtype}"
    else:
        index = differs(mine, right).nonzero()[0].tolist()
        a, b = (x.detach()[tuple(index)].item() for x in (right, mine))
        digits = next((d for d in (4, 8) if f"{a:.{d}g}" != f"{b:.{d}g}"), 17)
        found = f", index {index}: expected {a:.{digits}g}, given {b:.{digits}g}"
    known = look_at_all and _known(task, program, trial, every, wrong, look_at_all, formulas=False)
    known = known or _known(task, program, trial, every, wrong, look) or _exchanged(task, trial, wrong)
    cause = known or _not_finite(task, program, trial, wrong) or cause_of(wrong)
    raise Fault(f"is wrong on {trial}.", f"{wrong.what} on rank {rank}{found}", cause and f"Cause: {cause}")


def _not_finite(task: Task, program: Program, trial: Trial, wrong: Wrong) -> str | None:
    """Where inf or nan began, in this value or in another one that is returned: 0 may be 1 / inf. The program runs once
    more: to look at every number costs time."""
    returned = [y for given in run(task, program, trial).returned for y in several(given) if isinstance(y, Tensor)]
    if not isinstance(wrong.mine, Tensor) or all(y.isfinite().all() for y in (wrong.mine, *returned)):
        return None
    births: dict[int, Births] = {}
    run(task, watched(program, births), trial)
    return began(births, bool(wrong.mine.isnan().any()))


def _exchanged(task: Task, trial: Trial, wrong: Wrong) -> str | None:
    """Whether this is another one of the values that are asked for."""
    names = list(task.returns)
    if wrong.gradient_of or len(names) == 1:
        return None
    for name, whole in zip(names, rights(task, trial), strict=True):
        there = place(whole, task.returns[name], trial.devices)
        if name != wrong.what and all(close(a, b) for a, b in zip(wrong.given, there, strict=True)):
            return f"this is {name}. Asked for are {', '.join(names)}, in this order."
    return None


def _known(
    task: Task, program: Program, trial: Trial, every: list[Trial], wrong: Wrong, look: Look, formulas: bool = True
) -> str | None:
    """What the exercise itself has to say of this mistake."""
    if not wrong.gradient_of and not isinstance(wrong.mine, Tensor):
        return None
    # Who is asked for gradients has the right values, so a slip that has not is another one.
    known = {text: slip for text, slip in task.slips.items() if not wrong.gradient_of or is_right(task, slip, trial)}
    slips = {text: lambda t, slip=slip: look(slip, t) for text, slip in known.items()}

    def formula(mistake: Callable[..., Tensor], on: Trial) -> list[Tensor]:
        return place(mistake(on.devices, *on.inputs.values()), wrong.placement, on.devices)

    wholes = {
        text: lambda t, mistake=mistake: formula(mistake, t)
        for text, mistake in (task.mistakes if formulas and not wrong.gradient_of else {}).items()
    }
    others = [other for other in every if other is not trial]
    return recognized(program, trial, others, look, slips, wholes, wrong.rank, wrong.what)
