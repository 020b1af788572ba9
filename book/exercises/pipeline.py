"""The exercises of the chapter "Pipeline parallelism". Each function is a solution: read it after your own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from book.exercises.check.answers import answer
from book.exercises.check.failed import kind
from book.exercises.check.planning import planning
from book.exercises.check.verdict import Fault
from lib.costs.pipeline import bubble
from lib.devices.counts import counted
from lib.parallel.pipeline import schedules
from lib.parallel.pipeline.check import check_schedule
from lib.parallel.pipeline.clock import Times, timeline
from lib.parallel.pipeline.held import in_flight
from lib.parallel.pipeline.messages import with_messages
from lib.parallel.pipeline.steps import Backward, Forward, Recv, Schedule, Send, Step

Lists = list[list[Step]]


def judge_lists(given: Any, right: Lists, p: int, m: int) -> None:
    """The checker, the time, the memory: in this order."""
    on = f"p={p}, m={m}"
    if not isinstance(given, list | tuple) or len(given) != p or not all(isinstance(x, list | tuple) for x in given):
        fix = " Return the lists, not the Schedule." if isinstance(given, Schedule) else ""
        asked = f"expected {counted(p, 'list')} of steps, one for each device, given {kind(given)}."
        raise Fault(f"is wrong for {on}.", f"{asked}{fix}")
    strange = [step for steps in given for step in steps if not isinstance(step, Forward | Backward)]
    if strange:
        raise Fault(f"is wrong for {on}.", f"expected steps Forward and Backward, given {strange[0]!r}")
    mine, best = Schedule("yours", given), Schedule("wanted", right)
    try:
        check_schedule(mine)
    except ValueError as error:
        raise Fault(f"cannot run for {on}.", str(error)) from None
    if mine.micros != m:
        raise Fault(f"is wrong for {on}.", f"it has {mine.micros} micro-batches")
    held, allowed = in_flight(mine), in_flight(best)
    took, least = bubble(mine).total, bubble(best).total
    if took > least:
        raise Fault(
            f"is too slow for {on}.", f"with T_F = 1 and T_B = 2 it takes {took:g}, where {least:g} is possible"
        )
    if any(a > b for a, b in zip(held, allowed, strict=True)):
        raise Fault(f"holds too much for {on}.", f"micro-batches held: {_list(held)}; enough are {_list(allowed)}")


def judge_gpipe(given: Any, right: Lists, p: int, m: int) -> None:
    """As `judge_lists`, and the forwards are all before the backwards."""
    judge_lists(given, right, p, m)
    for device, steps in enumerate(given):
        if any(isinstance(b, Forward) and isinstance(a, Backward) for a, b in itertools.pairwise(steps)):
            raise Fault(f"is not GPipe for p={p}, m={m}.", f"device {device} has a forward behind a backward")


def _list(numbers: list[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def lists_of(make: Callable[[int, int], Schedule]) -> Callable[[int, int], Lists]:
    """The lists of a schedule, as a reader would write them."""
    return lambda p, m: [list(steps) for steps in make(p, m).steps]


CASES = ((1, 3), (2, 4), (4, 8), (4, 3), (4, 2))


@planning(
    oracle=lists_of(schedules.gpipe),
    judge=judge_gpipe,
    cases=CASES,
    praise="is right on 1, 2 and 4 devices: the checker finds nothing, and nothing is faster or holds less.",
    slips={
        "each backward follows its forward: nobody ever works beside another.": lists_of(schedules.naive),
    },
    hints=(
        "Device r has stage r. What does it do for every micro-batch first, and what then?",
        "Two loops over the micro-batches, one after the other: first Forward(r, k), then Backward(r, k).",
        "[[Forward(r, k) for k in range(m)] + [Backward(r, k) for k in range(m)] for r in range(p)]",
    ),
)
def gpipe_lists(p: int, m: int) -> Lists:
    """The lists of GPipe: for each of p devices, the steps for m micro-batches, all forwards first.

    Device r has stage r. Return p lists of Forward(stage, micro) and Backward(stage, micro).
    """
    return [[Forward(r, k) for k in range(m)] + [Backward(r, k) for k in range(m)] for r in range(p)]


def same_warm_up(p: int, m: int) -> Lists:
    """Every device goes as far ahead as the first."""
    ahead = min(m, p - 1)
    lists = []
    for r in range(p):
        steps: list[Step] = [Forward(r, k) for k in range(ahead)]
        for k in range(m - ahead):
            steps += [Forward(r, ahead + k), Backward(r, k)]
        lists.append(steps + [Backward(r, k) for k in range(m - ahead, m)])
    return lists


def no_cool_down(p: int, m: int) -> Lists:
    """Ends with the last forward."""
    return [
        steps[: steps.index(Forward(r, m - 1)) + 2] for r, steps in enumerate(lists_of(schedules.one_f_one_b)(p, m))
    ]


@planning(
    oracle=lists_of(schedules.one_f_one_b),
    judge=judge_lists,
    cases=CASES,
    praise="is right on 1, 2 and 4 devices: the checker finds nothing, no bubble is smaller, and device r holds p - r.",
    slips={
        "this is GPipe: it is as fast, and holds m.": lists_of(schedules.gpipe),
        "all devices go equally far ahead. Device r needs only as many as there are devices behind it.": same_warm_up,
        "what went ahead still needs its backwards, at the end.": no_cool_down,
        "without forwards ahead, each device waits for its own gradient.": lists_of(schedules.naive),
    },
    hints=(
        "How many forwards must device r have done when its first gradient can come back? Try the last device, then "
        "the one before it.",
        "p - 1 - r forwards ahead (at most m), then pairs of one forward and one backward, then the backwards left.",
        "ahead = min(m, p - 1 - r); steps = the first `ahead` forwards; for k in range(m - ahead): Forward(r, ahead + "
        "k), Backward(r, k); at last Backward(r, k) for k from m - ahead on.",
    ),
)
def one_f_one_b_lists(p: int, m: int) -> Lists:
    """The lists of 1F1B: as fast as GPipe, and device r never holds more than p - r micro-batches.

    As above: p lists of Forward(stage, micro) and Backward(stage, micro), where device r has stage r.
    """
    lists = []
    for r in range(p):
        ahead = min(m, p - 1 - r)
        steps = [Forward(r, k) for k in range(ahead)]
        for k in range(m - ahead):
            steps += [Forward(r, ahead + k), Backward(r, k)]
        lists.append(steps + [Backward(r, k) for k in range(m - ahead, m)])
    return lists


def whole_backward(x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return dy @ w, dy.T @ x


def judge_halves(given: Any, right: tuple[Tensor, Tensor], x: Tensor, w: Tensor, dy: Tensor) -> None:
    """Values, and in which half the products are."""
    if not isinstance(given, list | tuple) or len(given) != 2 or not callable(given[1]):
        raise Fault("is wrong.", f"expected dx and a function that gives dw, given {kind(given)}")
    dx, later = given
    with FlopCounterMode(display=False) as counter:
        dw = answer(later, (), "the call of later()")
    for name, mine, wanted in (("dx", dx, right[0]), ("dw", dw, right[1])):
        if not isinstance(mine, Tensor) or mine.shape != wanted.shape:
            told = tuple(mine.shape) if isinstance(mine, Tensor) else kind(mine)
            raise Fault("is wrong.", f"{name} must be of shape {tuple(wanted.shape)}, given {told}")
        if mine.dtype != wanted.dtype:
            raise Fault("is wrong.", f"{name} must be {wanted.dtype}, given {mine.dtype}")
        if not torch.allclose(mine, wanted):
            raise Fault("is wrong.", f"{name} is not the gradient of one device")
    if counter.get_total_flops() == 0:
        raise Fault(
            "is right, but does all at once.",
            "the function that gives dw does no product: it was done before, while the stage before waited for dx",
        )


def _halves_case(tokens: int, wide: int, narrow: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = (tokens, wide), (narrow, wide), (tokens, narrow)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@planning(
    oracle=whole_backward,
    judge=judge_halves,
    cases=(_halves_case(5, 3, 4), _halves_case(6, 2, 7)),
    praise="is right: dx is there at once, and the product for dw is done when it is called.",
    hints=(
        "Y = X W^T. Which product gives dX, which dW? Which of the two does the stage before wait for?",
        "dx = dy @ w, of shape (tokens, in). dw = dy.T @ x, of shape (out, in).",
        "return dy @ w, lambda: dy.T @ x. A lambda computes nothing until it is called.",
    ),
)
def in_halves(x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """The backward of y = x @ w.T in two halves: dx now, and a function that gives dw when it is called.

    x (tokens, in), w (out, in), dy (tokens, out). Without autograd. Return (dx, later), where later() gives dw.
    """
    return dy @ w, lambda: dy.T @ x


def step_time(costs: list[float], sizes: list[int], m: int = 16) -> float:
    """The time of a 1F1B step whose stage i has the next sizes[i] of the layers."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    stages = tuple(sum(costs[end - size : end]) for end, size in zip(ends, sizes, strict=True))
    lanes = timeline(schedules.one_f_one_b(len(sizes), m), Times(stages, stages, stages))
    return max(lane[-1].end for lane in lanes)


def equal_numbers(costs: list[float], p: int) -> list[int]:
    """As many layers on each stage."""
    each, more = divmod(len(costs), p)
    return [each + 1] * more + [each] * (p - more)


def judge_place(given: Any, right: list[int], costs: list[float], p: int) -> None:
    """By the clock."""
    numbers = isinstance(given, list | tuple) and all(isinstance(n, int) and n > 0 for n in given)
    if not numbers or len(given) != p:
        raise Fault(f"is wrong for p={p}.", f"expected {p} numbers of layers, each at least 1, given {given!r}")
    if sum(given) != len(costs):
        raise Fault(f"is wrong for p={p}.", f"{sum(given)} layers are placed, but there are {len(costs)}")
    took, least = step_time(costs, list(given)), step_time(costs, right)
    if took > least + 1e-9:
        raise Fault(
            f"can be faster, for {len(costs)} layers on p={p}.",
            f"stages of {_list(list(given))} layers take {took:g}; possible is {least:g}",
        )


def best_sizes(costs: list[float], p: int) -> list[int]:
    """Of all ways to cut, one whose slowest stage is fastest, and then the fastest of them by the clock."""
    n = len(costs)
    cuts = itertools.combinations(range(1, n), p - 1)
    ways = [[b - a for a, b in itertools.pairwise((0, *cut, n))] for cut in cuts]

    def slowest(sizes: list[int]) -> float:
        ends = list(itertools.accumulate(sizes))
        return max(sum(costs[end - size : end]) for end, size in zip(ends, sizes, strict=True))

    least = min(map(slowest, ways))
    near = [sizes for sizes in ways if slowest(sizes) <= least + 1e-9]
    return min(near, key=lambda sizes: step_time(costs, sizes))


UNEQUAL = [3.0, *[1.0] * 24, 6.0]  # an embedding, 24 layers, and a head with its loss


@planning(
    oracle=best_sizes,
    judge=judge_place,
    cases=((UNEQUAL, 4), ([1.0] * 10 + [2.0] * 4, 3)),
    praise="is right: no way to cut these layers is faster on the clock, with 16 micro-batches of 1F1B.",
    slips={"the numbers of layers are equal, but their times are not.": equal_numbers},
    hints=(
        "In the steady part of 1F1B all wait for the slowest stage. What is to be made small?",
        "Try a limit: fill stage after stage as far as it allows. The smallest limit with which p stages are enough "
        "gives a good cut; among several, let the clock decide.",
        "There are only C(25, 3) = 2,300 ways to cut 26 layers into 4: try all with step_time(costs, sizes).",
    ),
)
def place(costs: list[float], p: int) -> list[int]:
    """How many of the layers each of p stages gets, in order, so that a 1F1B step is fastest.

    costs[i] is the time of layer i, the same in all three parts. Judged by `step_time(costs, sizes)`.
    """
    cuts = itertools.combinations(range(1, len(costs)), p - 1)
    ways = [[b - a for a, b in itertools.pairwise((0, *cut, len(costs)))] for cut in cuts]

    def slowest(sizes: list[int]) -> float:
        left = list(costs)
        return max(sum(left.pop(0) for _ in range(size)) for size in sizes)

    least = min(map(slowest, ways))
    return min((s for s in ways if slowest(s) == least), key=lambda s: step_time(costs, s))


def stuck_steps(p: int, m: int) -> Lists:
    """1F1B whose sends stand right behind the steps: where a send waits, it deadlocks."""
    return [list(steps) for steps in with_messages(schedules.one_f_one_b(p, m), "beside").steps]


def judge_mended(given: Any, right: Lists, steps: Lists) -> None:
    """The same steps, in an order that runs where sends wait."""
    if not isinstance(given, list | tuple) or len(given) != len(steps):
        raise Fault("is wrong.", f"expected {len(steps)} lists, given {kind(given)}")
    for device, (mine, old) in enumerate(zip(given, steps, strict=True)):
        if sorted(map(str, mine)) != sorted(map(str, old)):
            raise Fault("is wrong.", f"device {device} must have the same steps as before, in another order")
        work = [[s for s in some if not isinstance(s, Send | Recv)] for some in (mine, old)]
        if work[0] != work[1]:
            raise Fault(
                "is wrong.", f"device {device}: forwards and backwards must stay as they are; move messages only"
            )
    try:
        check_schedule(Schedule("yours", given), rendezvous=True, tags=False)
    except ValueError as error:
        raise Fault("still cannot run where sends wait.", str(error)) from None


def _mended(steps: Lists) -> Lists:
    lists = []
    for some in steps:
        made: list[Step] = []
        for step in some:
            at = len(made)
            while isinstance(step, Recv) and at and isinstance(made[at - 1], Send):
                at -= 1  # before the sends that stand right before it
            made.insert(at, step)
        lists.append(made)
    return lists


@planning(
    oracle=_mended,
    judge=judge_mended,
    cases=((stuck_steps(3, 4),), (stuck_steps(4, 8),)),
    praise="is right: where a send waits for its receiver, all of them come to their end.",
    hints=(
        "Print the checker's answer: check_schedule(Schedule('stuck', steps), rendezvous=True). Which two devices wait "
        "for each other, and at which steps?",
        "Both want to send, and neither has asked yet for what the other sends. A Recv costs nothing here: it asks, "
        "and does not wait.",
        "Wherever a Recv stands right behind a Send, let the Recv come first.",
    ),
)
def mend(steps: Lists) -> Lists:
    """The same lists with their messages moved so that nothing deadlocks where a send waits for its receiver.

    The forwards and backwards stay in their order. Return the lists; those given stay as they are.
    """
    lists = []
    for some in steps:
        made = []
        for step in some:
            if isinstance(step, Recv) and made and isinstance(made[-1], Send):
                made.insert(-1, step)
            else:
                made.append(step)
        lists.append(made)
    return lists
