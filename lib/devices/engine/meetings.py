"""Collectives: a device comes with its tensor, the last to come does the work for all, and each collects its result."""

import sys
from collections import defaultdict, deque
from dataclasses import dataclass, field

from torch import Tensor

from lib.devices.clock import Clock
from lib.devices.collectives import Collective
from lib.devices.engine.waiting import Waiting
from lib.devices.engine.wording import describe, disagreement, short_ranks, where
from lib.devices.errors import MismatchError
from lib.devices.handle import Handle
from lib.devices.meters import Meters


@dataclass(eq=False)
class Meeting:
    """One collective: who of the group has come, and with what; then who gets what. Keys are ranks in the group."""

    verbs: dict[int, Collective] = field(default_factory=dict)
    tensors: dict[int, Tensor | None] = field(default_factory=dict)
    measure: int | None = None  # the rank that all who come later must agree with
    waiting: set[int] = field(default_factory=set)
    lines: dict[int, str] = field(default_factory=dict)  # where asynchronous calls were started
    came: dict[int, float] = field(default_factory=dict)  # in virtual time
    begin: float = 0.0
    end: float = 0.0
    results: list[Tensor | None] | None = None  # None until the last has come
    over: bool = False  # whether the results may be fetched; with a clock, whether begin and end are known


class Meetings:
    """All collectives of one run. A group is named by `key` and `ranks`; `rank` counts within it."""

    def __init__(self, waiting: Waiting, meters: Meters, clock: Clock | None):
        self._waiting, self._meters, self._clock = waiting, meters, clock
        self._meetings: dict[tuple[int, int], Meeting] = {}  # by key of the group and number of the call
        self._calls: dict[tuple[int, int], int] = defaultdict(int)  # key, rank -> collectives called so far
        # With a clock. Per device, the meetings without a time yet; by id, those to which all have come.
        self._called: list[deque[Meeting]] = [deque() for _ in range(waiting.size)]
        self._complete: dict[int, tuple] = {}

    def join(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None) -> Meeting:
        """Device `rank` comes with `x`, and does not wait. The n-th call of each device belongs to the same meeting."""
        self._waiting.check_caller(ranks[rank], verb)
        number = self._calls[key, rank] = self._calls[key, rank] + 1
        meeting = self._meetings.get((key, number))
        if meeting is None:
            meeting = self._meetings[key, number] = Meeting()
        self._check_match(meeting, ranks, rank, verb, x)
        meeting.verbs[rank], meeting.tensors[rank] = verb, x
        if self._clock is not None:
            meeting.came[rank] = self._clock.issue(ranks[rank])
            self._called[ranks[rank]].append(meeting)
        if len(meeting.verbs) == len(ranks):
            del self._meetings[key, number]
            self._hold(meeting, ranks, verb)
        return meeting

    def collect(self, meeting: Meeting, ranks: tuple[int, ...], rank: int, verb: Collective) -> Tensor | None:
        """What device `rank`, which has just joined, gets; waits until all have come."""
        if not meeting.over:
            meeting.waiting.add(rank)
            self._waiting.wait(ranks[rank], verb, ranks)
        if self._clock is not None:
            self._clock.wait_until(ranks[rank], meeting.end, verb.name, meeting.begin)
        result, meeting.results[rank] = meeting.results[rank], None
        if self._clock is not None and result is not None:
            self._clock.memory.see(ranks[rank], [result], verb.name)
        return result

    def hand_out(self, meeting: Meeting, ranks: tuple[int, ...], rank: int, verb: Collective) -> Handle:
        """A handle that collects later. It is remembered until then, with the line that started it."""
        line = meeting.lines[rank] = where(sys._getframe())
        return self._waiting.later(verb, ranks, ranks[rank], line, lambda: self.collect(meeting, ranks, rank, verb))

    def give_links_to_the_first(self) -> bool:
        """When nobody can move: a collective that waits for the link of one that was called before it, but to which the
        others come only afterwards, gets it now. False when there is none."""
        if not self._complete:
            return False
        self._give_links(next(iter(self._complete.values()))[0])
        return True

    def _hold(self, meeting: Meeting, ranks: tuple[int, ...], verb: Collective) -> None:
        """The last to come does the work for all."""
        tensors = [meeting.tensors[r] for r in range(len(ranks))]
        for r, traffic in zip(ranks, verb.traffic(tensors), strict=True):
            self._meters.charge(r, verb.name, traffic)
        if self._clock is None:
            meeting.results = verb.outcome(tensors)
            self._finish(meeting, ranks)
        else:
            with self._clock.paused():
                meeting.results = verb.outcome(tensors)
            self._complete[id(meeting)] = meeting, ranks, verb, tensors
            self._settle([meeting])
        meeting.tensors.clear()

    def _settle(self, meetings: list[Meeting]) -> None:
        """Gives the links to those of `meetings` that are complete and next on all of their devices, and then to those
        that were called after them."""
        while meetings:
            meeting = meetings.pop()
            _, ranks, *_ = self._complete.get(id(meeting), (None, ()))
            if ranks and all(self._called[r][0] is meeting for r in ranks):
                self._give_links(meeting)
                meetings += [self._called[r][0] for r in ranks if self._called[r]]

    def _give_links(self, meeting: Meeting) -> None:
        _, ranks, verb, tensors = self._complete.pop(id(meeting))
        came = [meeting.came[r] for r in range(len(ranks))]
        meeting.begin, meeting.end = self._clock.collective(ranks, verb, tensors, came)
        for r in ranks:
            self._called[r].remove(meeting)
        self._finish(meeting, ranks)

    def _finish(self, meeting: Meeting, ranks: tuple[int, ...]) -> None:
        meeting.over = True
        for r in sorted(meeting.waiting):
            self._waiting.turns.ready(ranks[r])

    def _check_match(
        self, meeting: Meeting, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None
    ) -> None:
        first = meeting.measure
        if first is not None:
            what = disagreement(meeting.verbs[first], meeting.tensors[first], verb, x)
            if what:
                frames = sys._current_frames()
                calls = [(first, meeting.verbs[first], meeting.tensors[first]), (rank, verb, x)]
                lines = [
                    f"  rank {ranks[r]}: {describe(v, t)}, in "
                    + (meeting.lines.get(r) or where(self._waiting.turns.frame_of(ranks[r], frames)))
                    for r, v, t in sorted(calls, key=lambda call: call[0])
                ]
                del frames  # as in `Waiting.deadlock`
                raise MismatchError("\n".join([f"in group {short_ranks(ranks)} {what}.", *lines]))
        if first is None or meeting.tensors[first] is None and x is not None:
            meeting.measure = rank  # not everyone must bring a tensor: the first who does is the better measure
