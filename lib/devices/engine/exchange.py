"""Where devices meet: collectives wait here until all have come, messages until they are fetched."""

import sys
from collections import defaultdict, deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from lib.devices.clock import Clock
from lib.devices.collectives import Collective
from lib.devices.engine.turns import Turns
from lib.devices.engine.wording import describe, disagreement, short_ranks, table_of_the_stuck, where
from lib.devices.errors import DeadlockError, MismatchError
from lib.devices.handle import Handle
from lib.devices.meters import Meters
from lib.devices.pieces import row_major
from lib.devices.traffic import Traffic, size_in_bytes


class Message(NamedTuple):
    """A send or a recv, as the errors show it."""

    verb: str
    peer: int
    tag: int

    def __str__(self) -> str:
        return f"{self.verb}({'dst' if self.verb == 'send' else 'src'}={self.peer}, tag={self.tag})"


@dataclass
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


class Exchange:
    """The meeting place of one run. Devices reach it through their `Group`, which is named by `key` and `ranks`
    (the ranks of the cluster, in the order of the group); `rank`, `src` and `dst` count within the group."""

    def __init__(self, size: int, meters: Meters, clock: Clock | None = None):
        self.size, self.meters, self.clock = size, meters, clock
        self.turns: Turns | None = None  # set while the run lasts
        self._meetings: dict[tuple[int, int], Meeting] = {}  # by key of the group and number of the call
        self._calls: dict[tuple[int, int], int] = defaultdict(int)  # key, rank -> collectives called so far
        self._mail: dict[tuple, deque[tuple[Tensor, float, tuple[int, ...]]]] = defaultdict(
            deque
        )  # address -> (message, time, ranks)
        self._receivers: dict[tuple, int] = {}  # address -> cluster rank that waits for it
        self._waits_for: dict[
            int, tuple[object, tuple[int, ...]]
        ] = {}  # cluster rank -> its call, and the group's ranks
        self._open: dict[Handle, str] = {}  # asynchronous calls nobody has waited for: where they were started
        self.ended: set[int] = set()  # cluster ranks whose program is over
        self._keys: dict[tuple, int] = {}

    def key_for(self, parent: int, ranks: tuple[int, ...], times: int) -> int:
        """The key of a sub-group: the same on all its members, which make it at the same place of the same program."""
        return self._keys.setdefault((parent, ranks, times), len(self._keys) + 1)

    def join(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None) -> Meeting:
        """Device `rank` comes with `x`, and does not wait. The n-th call of each device belongs to the same meeting."""
        self._check_caller(ranks[rank], verb)
        number = self._calls[key, rank] = self._calls[key, rank] + 1
        meeting = self._meetings.setdefault((key, number), Meeting())
        self._check_match(meeting, ranks, rank, verb, x)
        meeting.verbs[rank], meeting.tensors[rank] = verb, x
        if self.clock is not None:
            meeting.came[rank] = self.clock.now[ranks[rank]]
        if len(meeting.verbs) == len(ranks):
            del self._meetings[key, number]
            self._hold(meeting, ranks, verb)
        return meeting

    def collect(self, meeting: Meeting, ranks: tuple[int, ...], rank: int, verb: Collective) -> Tensor | None:
        """What device `rank` gets; waits until all have come."""
        self._check_caller(ranks[rank], verb)
        if meeting.results is None:
            meeting.waiting.add(rank)
            self._wait(ranks[rank], verb, ranks)
        if self.clock is not None:
            self.clock.wait_until(ranks[rank], meeting.end, verb.name, meeting.begin)
        result, meeting.results[rank] = meeting.results[rank], None
        if self.clock is not None and result is not None:
            self.clock.memory.see(ranks[rank], [result], verb.name)
        return result

    def hand_out(self, meeting: Meeting, ranks: tuple[int, ...], rank: int, verb: Collective) -> Handle:
        """A handle that collects later. It is remembered until then, with the line that started it."""

        def collect() -> Tensor | None:
            del self._open[handle]
            return self.collect(meeting, ranks, rank, verb)

        handle = Handle(f"{verb} in group {short_ranks(ranks)}", collect)
        meeting.lines[rank] = where(sys._getframe())
        self._open[handle] = f"rank {ranks[rank]} in {meeting.lines[rank]}"
        return handle

    def _hold(self, meeting: Meeting, ranks: tuple[int, ...], verb: Collective) -> None:
        """The last to come does the work for all."""
        tensors = [meeting.tensors[r] for r in range(len(ranks))]
        for r, traffic in zip(ranks, verb.traffic(tensors), strict=True):
            self.meters.charge(r, verb.name, traffic)
        if self.clock is None:
            meeting.results = verb.outcome(tensors)
        else:
            came = [meeting.came[r] for r in range(len(ranks))]
            meeting.begin, meeting.end = self.clock.collective(ranks, verb, tensors, came)
            with self.clock.paused():
                meeting.results = verb.outcome(tensors)
        meeting.tensors.clear()
        for r in sorted(meeting.waiting):
            self.turns.ready(ranks[r])

    def send(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> None:
        """Puts `x` into the mailbox of `dst` and goes on."""
        self._check_caller(ranks[rank], Message("send", dst, tag))
        self.meters.charge(ranks[rank], "send", Traffic(messages_sent=1, bytes_sent=size_in_bytes(x)))
        address = (key, rank, dst, tag)
        sent = 0.0 if self.clock is None else self.clock.send(ranks[rank], ranks[dst], size_in_bytes(x))
        with nullcontext() if self.clock is None else self.clock.paused():
            x = row_major(x.clone())  # what the sender does to its tensor later is its own affair
        self._mail[address].append((x, sent, ranks))
        if address in self._receivers:
            self.turns.ready(self._receivers.pop(address))

    def recv(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Tensor:
        """The oldest message from `src` under `tag`; waits until there is one."""
        call = Message("recv", src, tag)
        self._check_caller(ranks[rank], call)
        address = (key, src, rank, tag)
        if not self._mail[address]:
            self._receivers[address] = ranks[rank]
            self._wait(ranks[rank], call, ranks)
        x, sent, _ = self._mail[address].popleft()
        if self.clock is not None:
            self.clock.receive(ranks[src], ranks[rank], size_in_bytes(x), sent)
            self.clock.memory.see(ranks[rank], [x], call.verb)
        self.meters.charge(ranks[rank], "recv", Traffic(messages_received=1, bytes_received=size_in_bytes(x)))
        return x

    def check_nothing_left(self) -> None:
        """At the end of a run, every message must have been received and every handle waited for."""
        for handle, started in self._open.items():
            raise MismatchError(f"{started}: started {handle}. Call wait() on it, or leave out async_op=True")
        for (_, src, dst, tag), messages in self._mail.items():
            if messages:
                first, _, ranks = messages[0]
                raise MismatchError(
                    f"in group {short_ranks(ranks)} rank {src} sent to rank {dst} (tag={tag}) what nobody received: "
                    f"{len(messages)} message(s), the first of shape {tuple(first.shape)}. "
                    f"Add recv(src={src}, tag={tag}) to the program of rank {dst}, or take the send away"
                )

    def stuck(self) -> DeadlockError:
        """The error for the moment when nobody can move."""
        frames = sys._current_frames()
        places = {rank: where(self.turns.frame_of(rank, frames)) for rank in self._waits_for}
        del frames  # this frame is among them: such a cycle would keep the devices' tensors alive
        calls = {rank: f"{call} in group {short_ranks(ranks)}" for rank, (call, ranks) in self._waits_for.items()}
        return DeadlockError(table_of_the_stuck(self.size, calls, places, self.ended))

    def _wait(self, rank: int, call: object, ranks: tuple[int, ...]) -> None:
        self._waits_for[rank] = call, ranks
        self.turns.wait(rank)
        del self._waits_for[rank]

    def _check_caller(self, rank: int, call: object) -> None:
        if self.turns is None:
            raise RuntimeError(
                f"rank {rank} called {call} after its run had ended. Groups live as long as the run: call backward() "
                "and all verbs inside the program that Cluster.run() was given"
            )
        if not self.turns.is_current_thread(rank):
            raise RuntimeError(
                f"the group of rank {rank} was used by somebody else, to call {call}. "
                "Each device must use the group that its own program was given"
            )
        self.turns.stop_if_failed()

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
                    + (meeting.lines.get(r) or where(self.turns.frame_of(ranks[r], frames)))
                    for r, v, t in sorted(calls, key=lambda call: call[0])
                ]
                del frames  # as in `stuck`
                raise MismatchError("\n".join([f"in group {short_ranks(ranks)} {what}.", *lines]))
        if first is None or meeting.tensors[first] is None and x is not None:
            meeting.measure = rank  # not everyone must bring a tensor: the first who does is the better measure
