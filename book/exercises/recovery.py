"""The exercises of the chapter "Failing and recovering". Each function is a solution: read it after your own."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from book.exercises.check.counting import counting
from book.exercises.check.failed import kind
from book.exercises.check.planning import planning
from book.exercises.check.verdict import Fault
from lib.costs.recovery import daly, goodput
from lib.devices import Cluster, Group
from lib.devices.counts import counted
from lib.devices.pieces import shard_sizes
from lib.examples import resumed
from lib.parallel.recovery.checkpoint import complete, manifest_of
from lib.parallel.recovery.saving import save
from lib.parallel.recovery.state import all_held, parameters_held
from lib.parallel.zero.master import MasterWeights

Reads = list[tuple[int, int, int]]


def starts(rows: int, parts: int) -> list[int]:
    """Where each piece begins; at last, the end."""
    sizes = shard_sizes(rows, parts)
    return [sum(sizes[:i]) for i in range(parts + 1)]


def overlaps(rows: int, before: int, after: int, rank: int) -> Reads:
    """The solution, by intersection."""
    a, b = starts(rows, after)[rank : rank + 2]
    found = []
    for source, (c, d) in enumerate(pairwise(starts(rows, before))):
        if max(a, c) < min(b, d):
            found.append((source, max(a, c) - c, min(b, d) - c))
    return found


def numbered_in_the_whole(rows: int, before: int, after: int, rank: int) -> Reads:
    at = starts(rows, before)
    return [(source, at[source] + a, at[source] + b) for source, a, b in overlaps(rows, before, after, rank)]


def judge_reads(given: Any, right: Reads, rows: int, before: int, after: int, rank: int) -> None:
    """What is read, one after the other, must be the piece of this rank."""
    on = f"is wrong for {rows} rows, {before} files, rank {rank} of {after}."
    reads = []
    for one in given if isinstance(given, list | tuple) else [given]:
        try:
            source, a, b = map(int, one)
        except (TypeError, ValueError):
            raise Fault(on, f"expected a list of (file, start, stop), and {one!r} is no such triple") from None
        if a != b:  # nothing is read from there
            reads.append((source, a, b))
    files = [range(a, b) for a, b in pairwise(starts(rows, before))]
    got: list[int] = []
    for source, a, b in reads:
        if not 0 <= source < before:
            raise Fault(on, f"there is no file of rank {source}: the ranks are 0 to {before - 1}")
        if not 0 <= a <= b <= len(files[source]):
            raise Fault(
                on, f"rows {a} to {b} of file {source}, which has {len(files[source])}: count from its own start"
            )
        got += files[source][a:b]
    wanted = list(range(*starts(rows, after)[rank : rank + 2]))
    if got == wanted:
        return
    if sorted(got) == wanted:
        raise Fault(on, "these are the right rows in another order: read the files in the order of their ranks")
    missing, more = set(wanted) - set(got), set(got) - set(wanted)
    twice = len(got) - len(set(got))
    said = [
        f"missing: {_rows(missing)}" if missing else "",
        f"not its own: {_rows(more)}" if more else "",
        f"{counted(twice, 'row')} read twice" if twice else "",
    ]
    raise Fault(on, f"its piece is {_rows(set(wanted))}; {'; '.join(filter(None, said))}")


def _rows(some: set[int]) -> str:
    return f"rows {', '.join(map(str, sorted(some)))}" if some else "empty"


def cut_otherwise(size_of: Callable[[int, int], int]) -> Callable[[int, int, int, int], Reads]:
    """Pieces that begin at each multiple of one length; the last device gets what is left."""

    def reads(rows: int, before: int, after: int, rank: int) -> Reads:
        each = size_of(rows, after)
        a, b = min(rows, rank * each), rows if rank == after - 1 else min(rows, (rank + 1) * each)
        found = []
        for source, (c, d) in enumerate(pairwise(starts(rows, before))):
            if max(a, c) < min(b, d):
                found.append((source, max(a, c) - c, min(b, d) - c))
        return found

    return reads


def by_the_files(rows: int, before: int, after: int, rank: int) -> Reads:
    """The file of the same rank, whole."""
    sizes = shard_sizes(rows, before)
    return [(rank, 0, sizes[rank])] if rank < before else []


@planning(
    oracle=overlaps,
    judge=judge_reads,
    cases=((12, 4, 2, 1), (12, 2, 4, 1), (12, 4, 3, 1), (12, 3, 4, 3), (7, 3, 2, 0), (7, 2, 5, 4), (5, 1, 8, 2),
           (5, 8, 1, 0), (5, 1, 8, 6)),
    praise="is right: every row once and in order, for more devices and for fewer, and where some have none.",
    slips={
        "these are the rows of the whole tensor. In a file, they are counted from where the file begins.": (
            numbered_in_the_whole
        ),
        "this cuts by rounding up, and the last devices get less, or nothing. The book cuts by shard_sizes.": (
            cut_otherwise(lambda rows, after: -(-rows // after))
        ),
        "this cuts by rounding down, and the last device gets the rest. The book cuts by shard_sizes.": (
            cut_otherwise(lambda rows, after: rows // after)
        ),
        "stop is the first row that is NOT read: a file of 3 rows is read from 0 to 3.": (
            lambda rows, before, after, rank: [(f, a, b - 1) for f, a, b in overlaps(rows, before, after, rank)]
        ),
        "the third number is where to stop, not how many rows to read.": (
            lambda rows, before, after, rank: [(f, a, b - a) for f, a, b in overlaps(rows, before, after, rank)]
        ),
        "this is the file of the same rank. With another number of devices, the pieces begin elsewhere.": by_the_files,
        "old and new are exchanged.": lambda rows, before, after, rank: (
            overlaps(rows, after, before, rank) if rank < before else []
        ),
    },
    hints=(
        "Where does the piece of `rank` begin and end in the whole tensor? And each file?",
        "Two ranges [a, b) and [c, d) have the rows from max(a, c) to min(b, d) in common, if that is not empty.",
        "for each file [c, d): if max(a, c) < min(b, d), read (file, max(a, c) - c, min(b, d) - c).",
    ),
)  # fmt: skip
def to_read(rows: int, before: int, after: int, rank: int) -> Reads:
    """What device `rank` of `after` reads of a tensor of `rows` rows that `before` devices saved, each its piece.

    Pieces are as even as possible, the first ones longer (`shard_sizes` of lib). Return a list of (file, start, stop):
    rows start to stop - 1 of the file that rank `file` wrote, counted from the beginning of that file.
    """
    sizes, mine = shard_sizes(rows, before), shard_sizes(rows, after)
    a = sum(mine[:rank])
    b = a + mine[rank]
    reads, c = [], 0
    for file, size in enumerate(sizes):
        start, stop = max(a, c), min(b, c + size)
        if start < stop:
            reads.append((file, start - c, stop - c))
        c += size
    return reads


def best_interval(save_seconds: float, device_life: float, devices: int) -> float:
    return daly(save_seconds, device_life / devices)


def judge_interval(given: Any, right: float, save_seconds: float, device_life: float, devices: int) -> None:
    """Whoever loses no more than half a percent to the best interval is right, by whichever formula."""
    on = f"is wrong for {devices:,} devices that save in {save_seconds:g} s."
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise Fault(on, f"expected seconds, above 0, given {given if isinstance(given, int | float) else kind(given)}")
    between = device_life / devices
    mine, best = (goodput(tau, save_seconds, 0, between) for tau in (min(given, 50 * between), right))
    if mine < best - 0.005:
        raise Fault(
            on,
            f"every {given:,.0f} s: {mine:.1%} of the time is used; the best interval uses {best:.1%}",
            f"a failure comes every {between:,.0f} s on the average",
        )


@planning(
    oracle=best_interval,
    judge=judge_interval,
    cases=((30.0, 1.8e8, 16_384), (300.0, 1.8e8, 1_024), (60.0, 1.8e8, 100_000), (5.0, 1e7, 64)),
    praise="is right: on 4 machines, no other interval uses half a percent more of the time.",
    slips={
        "this is the time between failures of ONE device. With n of them, a failure comes n times as often.": (
            lambda save_seconds, device_life, devices: math.sqrt(2 * save_seconds * device_life)
        ),
        "this is the time between failures itself: half of it is lost with each.": (
            lambda save_seconds, device_life, devices: device_life / devices
        ),
        "the 2 is missing: a failure loses HALF an interval on the average.": (
            lambda save_seconds, device_life, devices: math.sqrt(save_seconds * device_life / devices)
        ),
        "the root is missing.": lambda save_seconds, device_life, devices: 2 * save_seconds * device_life / devices,
        "a failure comes n times as often, not n times as rarely: divide.": (
            lambda save_seconds, device_life, devices: math.sqrt(2 * save_seconds * device_life * devices)
        ),
    },
    hints=(
        "How far apart are two failures somewhere among `devices`? Call that M. A failure loses half an interval on "
        "the average; each interval pays one save.",
        "With interval t, the share that is lost is about save/t + t/(2 M). Where is that least?",
        "Where its two parts are equal: t = sqrt(2 * save * M), with M = device_life / devices.",
    ),
)
def interval(save_seconds: float, device_life: float, devices: int) -> float:
    """Seconds of training between two checkpoints, so that as much of the time as possible is used.

    `device_life` are the seconds between two failures of ONE device, on the average; saving takes `save_seconds`.
    """
    between = device_life / devices
    return math.sqrt(2 * save_seconds * between)


@cache
def measured_bytes(parameters: int, replicas: int, masters: bool) -> tuple[int]:
    """A small model is trained for a step and saved, and the bytes of its tensors are counted; Adam's counts of steps
    are left out."""
    side = math.isqrt(parameters)

    def program(group: Group, folder: Path) -> None:
        model = nn.Linear(side, side, bias=False).to(torch.bfloat16 if masters else torch.float32)
        with torch.no_grad():
            model.weight.fill_(0.5)

        def adam(some: list[nn.Parameter]) -> torch.optim.AdamW:
            return torch.optim.AdamW(some, lr=0.1)

        optimizer: Any = MasterWeights(model.parameters(), adam) if masters else adam(list(model.parameters()))
        model(torch.ones(1, side, dtype=model.weight.dtype)).sum().backward()
        optimizer.step()
        held = all_held(parameters_held(model, group.split(group.size)), optimizer)
        save(folder, 1, held, {}, group)

    with tempfile.TemporaryDirectory() as folder:
        Cluster(replicas).run(program, Path(folder))
        tensors = manifest_of(complete(Path(folder))[0])["tensors"]
    found = 0
    for name, one in tensors.items():
        if not name.startswith("step."):
            for block in one["blocks"]:
                found += math.prod(block["shape"]) * getattr(torch, one["dtype"]).itemsize
    return (found,)


def _bytes(each: Callable[[int, bool], int]) -> Callable[[int, int, bool], int]:
    return lambda parameters, replicas, masters: parameters * each(replicas, masters)


@counting(
    oracle=measured_bytes,
    returns=("bytes",),
    counted="a training that was saved has",
    cases=((64, 1, False), (64, 1, True), (144, 3, True), (100, 2, False)),
    slips={
        "bytes": {
            "gradients are not saved: the next step makes new ones.": _bytes(lambda replicas, masters: 16),
            "replicas hold the same. One of them saves.": _bytes(
                lambda replicas, masters: replicas * (14 if masters else 12)
            ),
            "replicas hold the same, and all of it: nothing is divided by their number.": (
                lambda parameters, replicas, masters: parameters * (14 if masters else 12) // replicas
            ),
            "replicas hold the same, so one of them saves; and gradients are not saved.": _bytes(
                lambda replicas, masters: 16 * replicas
            ),
            "these are the parameters alone. Without Adam's two moments the training does not go on as it was.": _bytes(
                lambda replicas, masters: 2 if masters else 4
            ),
            "Adam keeps two moments of each parameter, in float32.": _bytes(
                lambda replicas, masters: 10 if masters else 8
            ),
            "the float32 copy is missing: a step that bfloat16 rounds to nothing lives there.": _bytes(
                lambda replicas, masters: 10 if masters else 12
            ),
            "the bfloat16 parameters are in the files too (they could be rounded from the masters).": _bytes(
                lambda replicas, masters: 12
            ),
            "without master weights there is no second copy: parameters and two moments, 4 bytes each.": _bytes(
                lambda replicas, masters: 14
            ),
        }
    },
    hints=(
        "What does the next step need that it cannot make itself?",
        "Parameters, master weights where there are some, and Adam's two moments. Not the gradients, and not what "
        "another replica saves already.",
        "With masters 2 + 4 + 4 + 4 bytes for each parameter, without 4 + 4 + 4, whatever the number of replicas.",
    ),
)
def saved_bytes(parameters: int, replicas: int, masters: bool) -> int:
    """The bytes of a checkpoint of `parameters` parameters that train with Adam on `replicas` data-parallel devices.

    With `masters`, parameters are bfloat16 and there are float32 master weights; without, all is float32. As the book
    saves: the parameters are in it also where masters are.
    """
    return parameters * (2 + 4 + 4 + 4 if masters else 4 + 4 + 4)


REASONS = tuple(forgotten for forgotten in resumed.FORGETS if forgotten != "nothing")
INCIDENTS = dict(zip("ABC", (REASONS[i] for i in (1, 2, 0)), strict=True))
STOPPED, STEPS = 30, 60


@cache
def incidents() -> dict[str, list[float]]:
    """The losses of the steps 30 to 59 of a training that never stopped, and of three (A, B, C) that were resumed after
    30 steps and forgot something."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Cluster(2).run(resumed.train, STEPS)[0]
        Cluster(2).run(resumed.train, STOPPED, Path(folder))
        found = {"never stopped": whole[STOPPED:]}
        for letter, forgotten in INCIDENTS.items():
            found[letter] = Cluster(2).run(resumed.train, STEPS, Path(folder), True, forgotten)[0]
    return found


def judge_reasons(given: Any, right: dict[str, str]) -> None:
    """Each incident by its cause."""
    if not isinstance(given, dict) or set(given) != set(right):
        raise Fault("is wrong.", f"expected a dict with the keys {', '.join(map(repr, right))}, given {kind(given)}")
    for letter, reason in given.items():
        if reason not in REASONS:
            raise Fault("is wrong.", f"{letter}: {reason!r} is not one of {', '.join(REASONS)}")
    wrong = [letter for letter, reason in right.items() if given[letter] != reason]
    if wrong:
        told = {
            "data": "its first loss differs already, before any step; and later losses are lower than they should be.",
            "moments": "its first loss is right. What differs begins with the first step.",
            "stream": "its first loss differs already, and from then on the losses lie on both sides.",
        }
        raise Fault(
            "is not right yet.", f"{len(wrong)} of {len(right)} are something else",
            f"look at {wrong[0]} again: {told[right[wrong[0]]]}",
        )  # fmt: skip


@planning(
    oracle=lambda: dict(INCIDENTS),
    judge=judge_reasons,
    cases=((),),
    praise="is right: each of the three incidents has its cause.",
    hints=(
        "The first loss after the restart is computed before anything is stepped. In which incidents is it wrong?",
        "Samples that the network has seen before have a lower loss than new ones.",
        "Without Adam's moments the first loss is right, and the next steps are too large or go elsewhere.",
    ),
)
def why_it_jumps() -> dict[str, str]:
    """What each resumed training forgot: a dict from "A", "B" and "C" to "moments", "data" or "stream"."""
    first = {letter: losses[0] for letter, losses in incidents().items()}
    mean = {letter: sum(losses) for letter, losses in incidents().items()}
    moments = next(letter for letter in "ABC" if first[letter] == first["never stopped"])
    others = [letter for letter in "ABC" if letter != moments]
    data = min(others, key=mean.__getitem__)
    stream = next(letter for letter in others if letter != data)
    return {moments: "moments", data: "data", stream: "stream"}
