"""How many micro-batches a device holds: the activations that its forwards have kept and no backward has used yet.

Counted in micro-batches of all layers of a device, so a stage that is one of v chunks holds 1 / v. A backward in two
halves lets go of all but the share `weight` in the first: the products for the weights need the inputs of the linear
layers, and their outputs' gradients (Qi et al. 2023, section 2.2, call it M_W).
"""

from collections.abc import Sequence
from itertools import accumulate

from lib.parallel.pipeline.clock import Slot
from lib.parallel.pipeline.steps import Backward, BackwardInput, BackwardWeight, Forward, Schedule, Step


def change(step: Step, weight: float = 0.0) -> float:
    """What `step` adds to it, for a stage that is all of its device."""
    match step:
        case Forward():
            return 1.0
        case Backward():
            return -1.0
        case BackwardInput():
            return weight - 1.0
        case BackwardWeight():
            return -weight
    return 0.0


def in_flight(schedule: Schedule, weight: float = 0.0) -> list[float]:
    """The most that each device holds: m in GPipe, p - r in 1F1B. It depends on the order of the steps alone."""
    each = []
    for steps in schedule.steps:
        levels = accumulate((change(step, weight) / schedule.chunks for step in steps), initial=0.0)
        each.append(max(levels))
    return each


def held(lane: Sequence[Slot], chunks: int = 1, weight: float = 0.0) -> list[tuple[float, float]]:
    """What the device of `lane` holds over time: (seconds, micro-batches from then on). A forward holds from its
    beginning on, a backward until its end."""
    points = [(0.0, 0.0)]
    for slot in lane:
        more = change(slot.step, weight) / chunks
        points.append((slot.start if more > 0 else slot.end, more))
    times, changes = zip(*points, strict=True)
    return list(zip(times, accumulate(changes), strict=True))
