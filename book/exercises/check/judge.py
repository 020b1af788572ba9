"""The judge of an exercise: runs a reader's program on many devices and says the first thing that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from book.exercises.check.causes import cause_of
from book.exercises.check.cost import Spent, check_bytes, check_silence, check_steps, check_verbs, check_work, praise
from book.exercises.check.failed import check_callable, fault_of, is_stub, kind
from book.exercises.check.inputs import drawn
from book.exercises.check.task import Task
from book.exercises.check.trials import Outcome, Trial, attempt, hand_over, one_core, place, trials
from book.exercises.check.verdict import Fault, Verdict
from book.exercises.check.wrong import Wrong, differs, same

SEED = 2


def judge(task: Task, program: Callable[..., Any]) -> Verdict:
    """The verdict on `program`: the same for the same program, whenever it is asked for."""
    try:
        with one_core():
            _all_checks(task, program)
    except NotImplementedError:
        return Verdict(task.name, "waiting", "is waiting for your code.")
    except Fault as fault:
        return Verdict(task.name, "wrong", fault.sentence, fault.details)
    counts = f"{', '.join(map(str, task.devices[:-1]))} and {task.devices[-1]} devices"
    both_ways = "forward and backward, " if task.gradients else ""
    phases = {"Forward": task.forward, "Backward": task.backward} if task.gradients else {"Sent": task.forward}
    lines = praise(phases) + (("Steps: no more than needed.",) if task.steps else ())
    return Verdict(task.name, "correct", f"is right on {counts}, {both_ways}even and uneven.", lines)


def _all_checks(task: Task, program: Callable[..., Any]) -> None:
    check_callable(task.name, program, tuple(task.inputs))
    if is_stub(program):
        raise NotImplementedError
    runs = [(trial, _values(task, program, trial)) for trial in trials(task.inputs, task.devices, SEED)]
    after = [_gradients(task, program, trial) for trial, _ in runs] if task.gradients else []
    # Who has computed everything everywhere is told that, before any byte is counted.
    for trial, run in runs:
        check_silence(task.forward, trial, _spent(run))
    for trial, run in runs:
        check_verbs(task.only, trial, _spent(run)[0])
    for trial, run in runs:
        check_work(task.oracle, trial, run.work)
    for trial, run in runs:
        check_bytes(" forward" if task.gradients else "", task.forward, trial, _spent(run))
    for (trial, run), both in zip(runs, after, strict=False):
        spent = [b - a for a, b in zip(_spent(run), _spent(both), strict=True)]
        check_bytes(" backward", task.backward, trial, spent)
    for trial, run in runs:
        if task.steps:
            check_steps(task.steps(trial.devices), trial, run.steps)
    _refusal(task, program)


def _values(task: Task, program: Callable[..., Any], trial: Trial) -> Outcome:
    """Judges what is returned, and that the inputs are as they were."""
    run = _run(task, program, trial)
    names, wholes = list(task.returns), _several(task.oracle(*trial.inputs.values()))
    for rank, returned in enumerate(run.returned):
        if returned is ...:
            raise NotImplementedError
        if len(names) > 1 and not (isinstance(returned, tuple | list) and len(returned) == len(names)):
            given = f"{len(returned)} values" if isinstance(returned, tuple | list) else kind(returned)
            raise Fault(f"is wrong on {trial}.", f"rank {rank}: expected {' and '.join(names)}, given {given}")
    columns = list(zip(*run.returned, strict=True)) if len(names) > 1 else [run.returned]
    slips = {text: slip(trial.devices, *trial.inputs.values()) for text, slip in task.mistakes.items()}
    sent = run.meters.count().bytes_sent
    for name, given, whole in zip(names, columns, wholes, strict=True):
        _compare(trial, Wrong(name, None, list(given), whole, task.returns[name], sent, slips))
    for name, at in ((name, given.at) for name, given in task.inputs.items()):
        for rank, before in enumerate(hand_over(trial.inputs[name], at, trial.devices)):
            if not same(run.handed[rank][name], before):
                raise Fault(
                    f"changes its input {name} in place (rank {rank}), on {trial}.",
                    f"The caller may still need it: make a new tensor, {name} = {name} + 1 instead of {name} += 1.",
                )
    return run


def _gradients(task: Task, program: Callable[..., Any], trial: Trial) -> Outcome:
    """Judges the gradients of the inputs for a random gradient of the result."""
    whole = {name: x.clone().requires_grad_(name in task.gradients) for name, x in trial.inputs.items()}
    results = _several(task.oracle(*whole.values()))
    upstream = [drawn(y.shape, torch.Generator().manual_seed(SEED)) for y in results]
    torch.autograd.backward(results, upstream)
    placed = [place(g, at, trial.devices) for g, at in zip(upstream, task.returns.values(), strict=True)]

    def backward(rank: int, returned: Any) -> None:
        if not all(y.requires_grad for y in _several(returned)):
            raise Fault(
                f"loses the gradient on {trial}.",
                f"rank {rank}: no input is connected with the result. Was something detached, or made under no_grad?",
            )
        torch.autograd.backward(_several(returned), [pieces[rank] for pieces in placed])

    run = _run(task, program, trial, backward)
    for name in task.gradients:
        given = [mine[name].grad for mine in run.handed]
        _compare(trial, Wrong(f"the gradient of {name}", name, given, whole[name].grad, task.inputs[name].at, 1, {}))
    return run


def _compare(trial: Trial, wrong: Wrong) -> None:
    """Raises Fault with the first rank and index that differ, both values, and the cause if one is recognized."""
    wrong = wrong.in_sum()
    rank = wrong.rank
    if rank is None:
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
    cause = cause_of(wrong)
    raise Fault(f"is wrong on {trial}.", f"{wrong.what} on rank {rank}{found}", cause and f"Cause: {cause}")


def _refusal(task: Task, program: Callable[..., Any]) -> None:
    """Judges that inputs which do not fit together raise, whatever the exception."""
    for sentence, other in task.refused.items():
        inputs = {name: type(given)(other.get(name, given.dims), given.at) for name, given in task.inputs.items()}
        trial = next(t for t in trials(inputs, task.devices, SEED) if t.devices > 1)
        try:
            attempt(program, trial, inputs)
        except Exception:
            continue
        raise Fault(f"accepts what cannot be right: {sentence}, on {trial}.", "Raise a ValueError that says so.")


def _run(task: Task, program: Callable[..., Any], trial: Trial, backward: Callable = lambda *_: None) -> Outcome:
    try:
        return attempt(program, trial, task.inputs, task.gradients, backward, watch=task.steps is not None)
    except (NotImplementedError, Fault):
        raise
    except Exception as error:
        raise fault_of(error, program, trial) from None


def _spent(run: Outcome) -> list[Spent]:
    return [Spent.of(run.meters, rank) for rank in range(run.meters.size)]


def _several(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else tuple(value) if isinstance(value, list) else (value,)
