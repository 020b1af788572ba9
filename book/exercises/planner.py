"""The exercises of the chapter "How fast will it be?". Each function is a solution: read it after your own."""

from __future__ import annotations

from typing import Any

from book.exercises.check.failed import kind
from book.exercises.check.planning import planning
from book.exercises.check.verdict import Fault
from lib.costs.calibrate import predicted
from lib.costs.machine import H100_RUNS
from lib.costs.plans_that_fit import describe
from lib.costs.runs import Run, h100
from lib.costs.scaling import strong_efficiency
from lib.devices.counts import counted

Times = dict[int, float]
LECTURE = {1: 100.0, 2: 52.0, 4: 27.0, 8: 15.0, 16: 9.0, 32: 6.0}


def judge_efficiencies(given: Any, right: Times, seconds: Times) -> None:
    """Number by number."""
    if not isinstance(given, dict) or given.keys() != right.keys():
        raise Fault("is wrong.", f"expected a dict with the keys {list(right)}, given {kind(given)}")
    for n, wanted in right.items():
        try:
            off = abs(float(given[n]) - wanted)
        except (TypeError, ValueError):
            raise Fault("is wrong.", f"for {counted(n, 'device')}: expected a number, given {given[n]!r}") from None
        if not off < 1e-9:
            raise Fault("is wrong.", f"for {counted(n, 'device')}: expected {wanted:.4g}, given {float(given[n]):.4g}")


@planning(
    oracle=strong_efficiency,
    judge=judge_efficiencies,
    cases=((LECTURE,), ({4: 30.0, 8: 16.0, 32: 5.0},)),
    praise="is right, also for a series that begins with more than one device.",
    slips={
        "that is the speedup; the efficiency is what is left of it for each device.": lambda seconds: {
            n: seconds[min(seconds)] / took for n, took in seconds.items()
        },
        "the series need not begin with one device: the first may have 4.": lambda seconds: {
            n: seconds[min(seconds)] / took / n for n, took in seconds.items()
        },
    },
    hints=(
        "Twice the devices should take half the time. How many times faster is it really, and how many times could it "
        "be?",
        "speedup = time of the fewest / time; the most it could be = devices / the fewest.",
        "first = min(seconds); return {n: seconds[first] * first / (took * n) for n, took in seconds.items()}",
    ),
)
def efficiencies(seconds: Times) -> Times:
    """The efficiency of strong scaling, from the times of the same work: {devices: seconds} -> {devices: efficiency}.

    The fewest devices have efficiency 1.
    """
    first = min(seconds)
    return {n: seconds[first] * first / (took * n) for n, took in seconds.items()}


def judge_exposed(given: Any, right: float, backward: list[float], messages: list[float]) -> None:
    """One number."""
    try:
        off = abs(float(given) - right)
    except (TypeError, ValueError):
        raise Fault("is wrong.", f"expected a number of seconds, given {kind(given)}") from None
    if not off < 1e-9:
        raise Fault(
            f"is wrong for backwards of {_list(backward)} and messages of {_list(messages)}.",
            f"expected {right:g}, given {float(given):g}",
        )


def _list(numbers: list[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _by_events(backward: list[float], messages: list[float]) -> float:
    ready, free = 0.0, 0.0
    for compute, message in zip(backward, messages, strict=True):
        ready += compute
        free = max(ready, free) + message
    return free - ready


@planning(
    oracle=_by_events,
    judge=judge_exposed,
    cases=(
        ([10.0, 10.0, 10.0, 10.0], [4.0, 4.0, 4.0, 4.0]),
        ([10.0, 10.0, 10.0, 10.0], [15.0, 15.0, 15.0, 15.0]),
        ([20.0, 2.0, 2.0, 2.0], [5.0, 5.0, 5.0, 9.0]),
        ([1.0, 30.0], [20.0, 3.0]),
        ([10.0, 10.0, 10.0, 10.0], [15.0, 2.0, 2.0, 4.0]),
    ),
    praise="is right: where the link keeps up, where it does not, and where one long message holds up the others.",
    slips={
        "nothing is hidden then. A layer's gradients can travel while the next layer's backward runs.": (
            lambda backward, messages: sum(messages)
        ),
        "not all of the backward can hide something: the last gradients are there when it is over.": (
            lambda backward, messages: max(0.0, sum(messages) - sum(backward))
        ),
        "a late message may be caught up with: it holds up the next one only until the link is free again.": (
            lambda backward, messages: (
                sum(max(0.0, m - b) for b, m in zip(backward[1:], messages, strict=False)) + messages[-1]
            )
        ),
        "this is when the last message ends. Asked for is by how much it sticks out behind the backward.": (
            lambda backward, messages: _by_events(backward, messages) + sum(backward)
        ),
        "a message may have to wait: the link takes one at a time.": lambda backward, messages: messages[-1],
    },
    hints=(
        "Two clocks: when is the next gradient ready, and when is the link free?",
        "A message begins at the later of the two. What sticks out is the end of the last message minus the end of the "
        "backward.",
        "ready += compute; free = max(ready, free) + message; at the end free - ready.",
    ),
)
def exposed(backward: list[float], messages: list[float]) -> float:
    """The seconds of communication that stick out behind a backward that overlaps with it.

    `backward[i]` seconds are computed for the i-th layer, the last layer of the model first; then its gradients are
    ready, and take `messages[i]` seconds on the one link there is.
    """
    ready, free = 0.0, 0.0
    for compute, message in zip(backward, messages, strict=True):
        ready += compute
        free = max(ready, free) + message
    return free - ready


def _run(data: int, tensor: int, micro: int, zero: int) -> Run:
    return next(
        run
        for run in h100()
        if (run.name, run.nodes, run.plan.pipeline) == ("3B", 8, 1)
        and (run.plan.data, run.plan.tensor, run.plan.micro_batch, run.plan.zero) == (data, tensor, micro, zero)
    )


def contest() -> dict[str, Run]:
    """Three measured runs of one 3B model on 64 H100s, 256 texts of 4,096 tokens in a step."""
    return {"A": _run(8, 8, 1, 0), "B": _run(32, 2, 1, 0), "C": _run(8, 8, 16, 0)}


def judge_ranking(given: Any, right: list[str]) -> None:
    """Against the measured times; the planner's are told beside them."""
    if not isinstance(given, list | tuple) or sorted(map(str, given)) != sorted(right):
        raise Fault(
            "is no ranking.",
            f"expected a list of the letters {', '.join(sorted(right))} in some order, given {given!r}",
        )
    runs = contest()
    for faster, slower in zip(given, list(given)[1:], strict=False):
        if runs[faster].seconds > runs[slower].seconds:
            a, b = runs[faster], runs[slower]
            raise Fault(
                f"has {faster} before {slower}.",
                f"{faster} ({describe(a.plan)}): measured {a.seconds:.2f} s, predicted {predicted(a, H100_RUNS):.2f} s",
                f"{slower} ({describe(b.plan)}): measured {b.seconds:.2f} s, predicted {predicted(b, H100_RUNS):.2f} s",
            )


def measured_order() -> list[str]:
    """The letters, fastest first."""
    runs = contest()
    return sorted(runs, key=lambda letter: runs[letter].seconds)


def told() -> str:
    """What the planner and the measurement say of the three."""
    times = [
        f"{letter} {run.seconds:.2f} s measured, {predicted(run, H100_RUNS):.2f} s predicted"
        for letter, run in contest().items()
    ]
    return "; ".join(times)


@planning(
    oracle=measured_order,
    judge=judge_ranking,
    cases=((),),
    praise=f"is what was measured, and what the planner says: {told()}.",
    hints=(
        "The product of a micro-batch is cut in 8 where the tensor group has 8 devices. What takes longest in a layer "
        "that has very little to compute?",
        "A layer cannot be faster than its kernels are issued, 4.4 ms here. Count micro-batches times layers for each "
        "of the three: 32 x 28, 8 x 28 and 2 x 28.",
        "A waits for its host. C has long layers, but sends activations eight ways; B sends them two ways.",
    ),
)
def ranking() -> list[str]:
    """The letters of `tasks.contest()`, fastest first, as a list such as ["A", "B", "C"]."""
    return ["B", "C", "A"]
