"""How long a schedule takes: each device does its steps in order, and each step waits for what it needs.

    forward of micro-batch k through stage s      needs its activation from stage s - 1
    backward (or backward for the input)          needs its gradient from stage s + 1
    backward for the weights                      needs only its device

Left out: what a device loses by sending and receiving while it computes, and links that are busy.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lib.devices.counts import check_counts
from lib.parallel.pipeline.steps import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Forward,
    Recv,
    Schedule,
    Send,
    Step,
)

Seconds = float | Sequence[float]  # of every stage, or one number for each


@dataclass(frozen=True)
class Times:
    """Seconds that a stage needs for one micro-batch: `forward`, backward for the `input`, backward for the `weight`
    (each one number, or one per stage), and `message`, from the end of a step until its result is at the next stage.

    Raises ValueError for what is no time: a negative number, nan, an endless one.
    """

    forward: Seconds = 1.0
    input: Seconds = 1.0
    weight: Seconds = 1.0
    message: float = 0.0

    def __post_init__(self) -> None:
        for name, seconds in vars(self).items():
            if not all(0 <= one < math.inf for one in (seconds if hasattr(seconds, "__len__") else [seconds])):
                raise ValueError(f"Times: {name}={seconds!r} must be at least 0 seconds, and finite")

    def of(self, step: Step) -> float:
        """Seconds of computing."""
        match step:
            case Forward():
                return _at(self.forward, step.stage)
            case Backward():
                return _at(self.input, step.stage) + _at(self.weight, step.stage)
            case BackwardInput():
                return _at(self.input, step.stage)
            case BackwardWeight():
                return _at(self.weight, step.stage)
        return 0.0

    def cut(self, chunks: int) -> "Times":
        """The same layers in stages that are smaller by `chunks`. A message stays as long as it is."""
        check_counts("Times.cut", {"chunks": chunks})
        return replace(self, forward=self.forward / chunks, input=self.input / chunks, weight=self.weight / chunks)


def _at(seconds: Seconds, stage: int) -> float:
    return seconds[stage] if hasattr(seconds, "__len__") else seconds


class Slot(NamedTuple):
    """A step and its time."""

    step: Step
    start: float
    end: float


class Stuck(ValueError):
    """No device can go on. `waits`: device -> the number of its step, and the value that is missing."""

    def __init__(self, schedule: Schedule, waits: dict[int, tuple[int, tuple[str, int, int]]]):
        self.waits = waits
        lines = [f"  device {r}, step {i}: {schedule.steps[r][i]} {_lacks(*key)}" for r, (i, key) in waits.items()]
        super().__init__("\n".join([f"{schedule.name}: no device can go on.", *lines]))


def _lacks(what: str, stage: int, micro: int) -> str:
    if what in "FB":
        kind, other = ("activation", stage - 1) if what == "F" else ("gradient", stage + 1)
        return f"needs the {kind} of micro-batch {micro} from stage {other}"
    if what in ("askF", "askB"):
        return f"waits until stage {stage} asks for it"
    return f"needs what stage {stage} makes of micro-batch {micro}, on its own device, first"


def timeline(schedule: Schedule, times: Times | None = None, rendezvous: bool = False) -> list[list[Slot]]:
    """For each device, its steps with start and end. Without messages in the lists, what a step makes is sent at its
    end, and is there `times.message` later. With messages, a Recv never waits (the step that uses it does), and neither
    does a Send, unless there is `rendezvous`: then it waits until its receiver has asked, and until it has left.

    Raises `Stuck`, a ValueError that says who waits for what.
    """
    times, last, where = times or Times(), schedule.stages - 1, schedule.device_of
    lanes: list[list[Slot]] = [[] for _ in schedule.steps]
    now, at = [0.0] * schedule.devices, [0] * schedule.devices
    there: dict[tuple[str, int, int], float] = {}  # ("F", s, k): when stage s has the activation that it needs, ...
    waiting: dict[tuple[str, int, int], int] = {}  # who goes on when it comes
    mail: dict[tuple[str, int, int], float] = {}  # sent, and not asked for; or asked for, and not sent
    ready = deque(range(schedule.devices))

    def comes(key: tuple[str, int, int], time: float) -> None:
        there[key] = time
        if key in waiting:
            ready.append(waiting.pop(key))

    def message(key: tuple[str, int, int], time: float) -> None:
        if key in mail:  # the other side was here before
            comes(key, max(mail.pop(key), time))
        else:
            mail[key] = time

    def made(what: str, step: Step, to: int, time: float) -> None:
        if not 0 <= to <= last:
            return
        if where[to] == where[step.stage]:
            comes((what, to, step.micro), time)
        elif schedule.has_messages:
            there["out" + what, step.stage, step.micro] = time
        else:
            comes((what, to, step.micro), time + times.message)

    while ready:
        device = ready.popleft()
        steps = schedule.steps[device]
        while at[device] < len(steps):
            step = steps[at[device]]
            needs = needs_of(step, last)
            leaving = rendezvous and isinstance(step, Send)
            if leaving:
                needs.append(("ask" + step.what, step.peer, step.micro))
            start, missing = now[device], None
            for key in needs:
                if key not in there:
                    missing = key
                    break
                start = max(start, there[key])
            if missing is not None:
                waiting[missing] = device
                break
            end = now[device] = start + (times.message if leaving else times.of(step))
            at[device] += 1
            lanes[device].append(Slot(step, start, end))
            match step:
                case Forward():
                    there["doneF", step.stage, step.micro] = end
                    made("F", step, step.stage + 1, end)
                case Backward() | BackwardInput():
                    there["doneI", step.stage, step.micro] = end
                    made("B", step, step.stage - 1, end)
                case Send():
                    message((step.what, step.peer, step.micro), start + times.message)
                case Recv():
                    comes(("ask" + step.what, step.stage, step.micro), end)
                    message((step.what, step.stage, step.micro), end)
    if waiting:
        raise Stuck(schedule, {device: (at[device], key) for device, key in sorted((d, k) for k, d in waiting.items())})
    return lanes


def needs_of(step: Step, last: int) -> list[tuple[str, int, int]]:
    """What must be there before `step` can begin, where `last` is the last stage."""
    match step:
        case Forward():
            return [("F", step.stage, step.micro)] * (step.stage > 0)
        case Backward() | BackwardInput():
            grad = [("B", step.stage, step.micro)] * (step.stage < last)
            return [("doneF", step.stage, step.micro), *grad]
        case BackwardWeight():
            return [("doneI", step.stage, step.micro)]
        case Send():
            return [("out" + step.what, step.stage, step.micro)]
    return []
