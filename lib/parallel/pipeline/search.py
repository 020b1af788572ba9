"""A schedule that is searched for: given the times and a limit of memory, who should do what when?

The rule of a device, whenever it is free: a gradient that is there goes first, then a forward if there is memory for
it, and the weights fill what would be idle. Three questions have no answer that is always best, so all are tried: how
many forwards before the first backward, whether to begin weights if something is about to come, and who goes first if
both could. The best is kept; the schedules that have names compete too.
"""

from collections.abc import Sequence
from itertools import product

from lib.parallel.pipeline.clock import Times, timeline
from lib.parallel.pipeline.held import change, in_flight
from lib.parallel.pipeline.schedules import one_f_one_b, zb_h1, zb_h2
from lib.parallel.pipeline.steps import BackwardInput, BackwardWeight, Forward, Schedule, Step
from lib.parallel.pipeline.v_shaped import zb_v

TINY = 1e-9  # of rounding


def search_schedule(
    p: int, m: int, memory: float, times: Times | None = None, place: Sequence[int] | None = None, weight: float = 0.5
) -> Schedule:
    """The fastest schedule found on p devices with m micro-batches that holds at most `memory` micro-batches on each.

    `place` is the device of each stage (one stage on each); `weight` as in `in_flight`. Nothing says that there is no
    better one. Raises ValueError when none is found that fits in the memory.
    """
    place, times = tuple(range(p) if place is None else place), times or Times()
    if sorted(set(place)) != list(range(p)):
        raise ValueError(f"search_schedule: stages are placed on {sorted(set(place))}; each of {p} devices needs one")
    named = [make(p, m) for make in (one_f_one_b, zb_h1, zb_h2, zb_v)]
    found = [schedule for schedule in named if tuple(schedule.device_of.values()) == place]
    for ahead, patience, backward_first in product((0, *range(p, 2 * p)), (0.0, 0.5, 1.0), (True, False)):
        greedy = _Greedy(m, memory, times, place, weight, ahead, patience, backward_first)
        found += [schedule for schedule in [greedy.run()] if schedule]
    fitting = [schedule for schedule in found if max(in_flight(schedule, weight)) <= memory + TINY]
    if not fitting:
        raise ValueError(
            f"search_schedule: found nothing for {p} devices that holds at most {memory} micro-batches; {p} are enough"
        )
    return min(fitting, key=lambda s: max(lane[-1].end - lane[0].start for lane in timeline(s, times)))


class _Greedy:
    """`ahead`: forwards before the first backward on device 0, and one less on each next; 0 for as many as there may
    be. `patience`: weights are not begun when something else comes sooner than this share of their time."""

    def __init__(
        self,
        m: int,
        memory: float,
        times: Times,
        place: tuple[int, ...],
        weight: float,
        ahead: int,
        patience: float,
        backward_first: bool,
    ):
        self.m, self.memory, self.times, self.place, self.weight = m, memory, times, place, weight
        self.ahead, self.patience, self.backward_first = ahead, patience, backward_first
        self.devices, self.last = max(place) + 1, len(place) - 1
        self.share = self.devices / len(place)  # a stage's part of its device
        self.mine = [[s for s, device in enumerate(place) if device == r] for r in range(self.devices)]
        self.done = {(kind, s): 0 for kind in (Forward, BackwardInput, BackwardWeight) for s in range(len(place))}
        self.arrives = {(Forward, 0, k): 0.0 for k in range(m)}
        self.lists: list[list[Step]] = [[] for _ in range(self.devices)]
        self.now, self.level = [0.0] * self.devices, [0.0] * self.devices

    def run(self) -> Schedule | None:
        """The schedule; None where the rule gets stuck for want of memory."""
        for _ in range(3 * self.m * len(self.place)):
            choices = [(*choice, r) for r in range(self.devices) if (choice := self.choose(r))]
            if not choices:
                return None
            # Whoever can begin first begins: what it makes cannot come too late for another's choice.
            begin, step, device = min(choices, key=lambda choice: (choice[0], choice[2]))
            self.do(device, step, begin)
        return Schedule("searched", self.lists)

    def do(self, device: int, step: Step, begin: float) -> None:
        kind, s, k = type(step), step.stage, step.micro
        end = self.now[device] = begin + self.times.of(step)
        self.level[device] += change(step, self.weight) * self.share
        self.lists[device].append(step)
        self.done[kind, s] += 1
        to = s + 1 if kind is Forward else s - 1
        if kind is Forward and s == self.last:
            self.arrives[BackwardInput, s, k] = end
        elif kind is not BackwardWeight and to >= 0:
            self.arrives[kind, to, k] = end + self.times.message * (self.place[to] != device)

    def choose(self, device: int) -> tuple[float, Step] | None:
        """When the device would begin its next step, and which it is."""
        now, steps = self.now[device], self.lists[device]
        turn = BackwardInput if self.backward_first or not steps or isinstance(steps[-1], Forward) else Forward
        options = []
        for s in reversed(self.mine[device]):  # deeper stages first: their micro-batches are nearer to their end
            for kind in (BackwardInput, Forward):
                comes = self.arrives.get((kind, s, self.done[kind, s]))
                if comes is not None and (kind is BackwardInput or self.may_forward(device, s)):
                    options.append((max(now, comes), kind is not turn, kind(s, self.done[kind, s])))
        best = min(options, key=lambda option: option[:2], default=None)
        for s in self.mine[device]:
            if self.done[BackwardWeight, s] < self.done[BackwardInput, s]:
                weights = BackwardWeight(s, self.done[BackwardWeight, s])
                enough = max(TINY, self.patience * self.times.of(weights) - TINY)
                if best is None or best[0] - now >= enough:
                    return now, weights
                break
        return best and (best[0], best[2])

    def may_forward(self, device: int, stage: int) -> bool:
        """Whether there is memory for a forward, and for the stages behind it on this device, which end it."""
        mine = self.mine[device]
        if self.level[device] + (len(mine) - mine.index(stage)) * self.share > self.memory + TINY:
            return False
        started = any(self.done[BackwardInput, s] for s in mine)
        return not self.ahead or started or stage != mine[0] or self.done[Forward, stage] < max(1, self.ahead - device)
