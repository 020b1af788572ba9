"""The judge of a task: runs a reader's program on many devices and says the first thing that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from book.exercises.check.compare import judge_gradients, judge_values
from book.exercises.check.cost import (
    Spent,
    Talk,
    check_bytes,
    check_ring,
    check_silence,
    check_steps,
    check_verbs,
    check_work,
    praise,
)
from book.exercises.check.failed import check_callable, is_stub
from book.exercises.check.runs import is_right, one_verdict, several, spent_backward, spent_forward
from book.exercises.check.task import Program, Task
from book.exercises.check.trials import SEED, Trial, attempt, one_core, trials
from book.exercises.check.verdict import Excess, Fault, Verdict
from lib.parallel.sharding.placement import Replicate

MORE = "Right, but it sends more than it needs."


def judge(task: Task, program: Program) -> Verdict:
    """The verdict on `program`: the same for the same program, whenever it is asked for."""
    try:
        with one_core(), one_verdict(task):
            lines = _all_checks(task, program)
    except NotImplementedError:
        return Verdict(task.name, "waiting", "is waiting for your code.")
    except Fault as fault:
        return Verdict(task.name, "wrong", fault.sentence, fault.details)
    counts = f"{', '.join(map(str, task.devices[:-1]))} and {task.devices[-1]} devices"
    both_ways = "forward and backward, " if task.gradients else ""
    return Verdict(task.name, "correct", f"is right on {counts}, {both_ways}even and uneven.", lines)


def _all_checks(task: Task, program: Program) -> tuple[str, ...]:
    """Raises Fault at the first thing that is wrong; returns what is to be told of a right answer."""
    check_callable(task.name, program, tuple(task.inputs))
    if is_stub(program):
        raise NotImplementedError
    every = list(task.trials)
    remarks: dict[str, None] = {}  # each once, in order
    for trial in every:
        judge_values(task, program, trial, every, remarks)
    for trial in every if task.gradients else ():
        judge_gradients(task, program, trial, every, remarks)
    forward, backward = partial(spent_forward, task), partial(spent_backward, task)
    # Who has computed everything everywhere is told that, before any byte is counted.
    for trial in every:
        check_silence(task.forward, trial, forward(program, trial))
    for trial in every:
        mine = forward(program, trial)
        try:
            check_verbs(task.only, trial, mine[0])
        except Fault as fault:
            raise _named(fault, task, trial, mine, forward) from None
    for trial in every:
        _work(task, program, trial, remarks)
    for trial in every:
        _parts(task, program, trial)
    # A clock beside it would make every run of every program slower: who came so far runs once more, with one.
    watched = [attempt(program, t, task.inputs, watch=True) for t in every if task.ring or task.steps]
    if task.ring:
        for trial, outcome in zip(every, watched, strict=True):
            check_ring(trial, outcome.paths)
    both_ways = [(" forward", task.forward, forward), (" backward", task.backward, backward)]
    lines = []
    try:
        for phase, talks, look in both_ways if task.gradients else [("", task.forward, forward)]:
            for trial in every:
                mine = look(program, trial)
                _bytes(task, phase, talks, trial, mine, look)
            lines.append(praise(phase, talks, mine[0]))
    except Excess as excess:
        if task.limited:
            raise
        lines = []
        remarks[f"{MORE} {' '.join(excess.details)}"] = None
    if task.steps:
        for trial, outcome in zip(every, watched, strict=True):
            check_steps(task.steps(trial.devices), trial, outcome.steps)
        lines.append("Steps: no more than needed.")
    _refusal(task, program, remarks)
    return *lines, *remarks


def _work(task: Task, program: Program, trial: Trial, remarks: dict[str, None]) -> None:
    """Judges that nothing is multiplied twice, where there is something to divide."""
    everywhere = [given.at for given in task.inputs.values()] + list(task.returns.values())
    if not task.forward and all(isinstance(at, Replicate) for at in everywhere):
        return  # all devices do the same: it is asked for
    if trial.devices == 1 or not trial.even:
        return  # uneven pieces may be padded to one length

    def work(on: Trial) -> list[int]:
        return attempt(program, on, task.inputs, task.gradients, count=True).work

    def alone() -> int:
        try:
            return sum(work(replace(trial, devices=1)))
        except Exception:
            return 0

    remark = check_work(task.oracle, trial, work(trial), alone)
    if remark:
        remarks[remark] = None


def _parts(task: Task, program: Program, trial: Trial) -> None:
    """Raises Fault when a device needs more of a whole input than its own part."""
    for name, part in task.parts.items() if trial.even else ():
        returned = attempt(program, trial, task.inputs, task.gradients, usable={name: part}).returned
        if any(not y.isfinite().all() for given in returned for y in several(given)):
            raise Fault(
                f"gives the right numbers, but not by the way that is asked for, on {trial}.",
                f"With only its own part of {name}, cut along dim {part.dim}, a device cannot compute its share.",
                f"Cause: {name} is used whole, or cut along another dim, or another device's part is used.",
            )


def _bytes(
    task: Task, phase: str, talks: tuple[Talk, ...], trial: Trial, mine: list[Spent], look: Callable[..., list[Spent]]
) -> None:
    try:
        check_bytes(phase, talks, trial, mine)
    except Fault as fault:
        raise _named(fault, task, trial, mine, look) from None


def _named(fault: Fault, task: Task, trial: Trial, mine: list[Spent], look: Callable[..., list[Spent]]) -> Fault:
    """The same fault; where a known program that is right spends the same, its sentence is the cause.

    Right everywhere: a slip that is wrong only where pieces are uneven would blame a right answer for that.
    """
    for text, slip in task.slips.items():
        right = all(_right(task, slip, each) for each in task.trials)
        if right and [x.verbs for x in look(slip, trial)] == [x.verbs for x in mine]:
            told = [detail for detail in fault.details if not detail.startswith("Cause:")]
            return type(fault)(fault.sentence, *told, f"Cause: {text}")
    return fault


def _right(task: Task, program: Program, trial: Trial) -> bool:
    """Whether a known program gives the right values and gradients: then only its price is to be spoken of."""
    try:
        if task.gradients:
            judge_gradients(task, program, trial, [trial], {})
    except Fault:
        return False
    return is_right(task, program, trial)


def _refusal(task: Task, program: Program, remarks: dict[str, None]) -> None:
    """Judges that inputs which do not fit together raise, whatever the exception; remarks it where nobody asked."""
    for sentence, other in task.refused.items():
        inputs = {name: type(given)(other.get(name, given.dims), given.at) for name, given in task.inputs.items()}
        trial = next(t for t in trials(inputs, task.devices, SEED) if t.devices > 1)
        try:
            attempt(program, trial, inputs)
        except Fault:
            raise  # it does not end
        except Exception:
            continue
        if task.must_refuse:
            raise Fault(f"accepts what cannot be right: {sentence}, on {trial}.", "Raise an error that says so.")
        remarks[f"Right, but it accepts what cannot be right: {sentence}. A ValueError would say so."] = None
