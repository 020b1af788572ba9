"""Where the devices of a simulated run meet: the `MeetingPlace` behind their groups."""

from time import perf_counter

from lib.devices.clock import Clock
from lib.devices.engine.meetings import Meetings
from lib.devices.engine.post import Post
from lib.devices.engine.turns import Turns
from lib.devices.engine.waiting import Waiting
from lib.devices.errors import DeadlockError
from lib.devices.meters import Meters
from lib.devices.trace import Span


class Exchange:
    """The meeting place of one run. Devices reach it through their `Group`, which is named by `key` and `ranks`
    (the ranks of the cluster, in the order of the group); `rank`, `src` and `dst` count within the group."""

    def __init__(self, size: int, meters: Meters, clock: Clock | None = None, rendezvous: bool = False):
        self.size, self.clock = size, clock
        self._waiting = Waiting(size)
        self._meetings = Meetings(self._waiting, meters, clock)
        self._post = Post(self._waiting, meters, clock, rendezvous)
        self._keys: dict[tuple, int] = {}
        # The protocol's calls, handed on as they are: a program makes them thousands of times.
        self.join, self.collect, self.hand_out = self._meetings.join, self._meetings.collect, self._meetings.hand_out
        self.send, self.recv, self.expect = self._post.send, self._post.recv, self._post.expect
        self.offer, self.forget = self._post.offer, self._waiting.forget

    @property
    def turns(self) -> Turns | None:
        """Who runs at the moment; None when the run is over, and the groups are dead."""
        return self._waiting.turns

    @turns.setter
    def turns(self, turns: Turns | None) -> None:
        self._waiting.turns = turns

    def ended(self, me: int) -> None:
        """The program of device `me` is over."""
        self._waiting.ended.add(me)

    def key_for(self, parent: int, ranks: tuple[int, ...], times: int) -> int:
        """The key of a sub-group: the same on all its members, which make it at the same place of the same program."""
        return self._keys.setdefault((parent, ranks, times), len(self._keys) + 1)

    def stand_still(self, me: int, call: object, ranks: tuple[int, ...]) -> None:
        """Device `me` waits until another says `go_on(me)`. The errors name `call`, in the group of `ranks`."""
        self._waiting.check_caller(me, call)
        self._waiting.wait(me, call, ranks)

    def go_on(self, me: int) -> None:
        """Device `me`, which stands still, may go on when its turn comes."""
        self.turns.ready(me)

    def deadlock(self, asking: dict[int, str]) -> DeadlockError:
        """The error for a moment when nobody can move: some stand still, others are `asking` in vain (rank -> what)."""
        return self._waiting.deadlock(asking)

    def step_back(self, me: int, call: object) -> None:
        """Device `me` asks again and again: the others, of whom one may have the answer, go first."""
        self._waiting.check_caller(me, call)
        self.turns.step_back(me)

    def __reduce__(self) -> None:
        raise TypeError(
            "a Group cannot be saved: it is a connection between running devices. Save the state_dict() of a module in "
            "place of the module, or dense_state(...) of all devices' modules"
        )

    def now(self, me: int) -> float:
        """The virtual time of the device with rank `me` in the cluster; without hardware, that of the wall clock."""
        return perf_counter() if self.clock is None else self.clock.now[me]

    def note(self, me: int, name: str, start: float) -> None:
        """Device `me` calls the time from `start` to now `name`."""
        if self.clock is not None:
            self.clock.trace.spans.append(Span(me, name, start, self.clock.now[me]))

    def check_nothing_left(self) -> None:
        """At the end of a run, every handle must have been waited for and every message received."""
        self._waiting.check_all_waited_for()
        self._post.check_all_received()

    def stuck(self) -> DeadlockError | None:
        """The error for the moment when nobody can move. None when somebody can after all."""
        while not self.turns.in_line and self._meetings.give_links_to_the_first():
            pass
        return None if self.turns.in_line else self._waiting.deadlock({})
