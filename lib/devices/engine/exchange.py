"""Where devices meet: collectives wait here until all have come, messages until they are fetched."""

import sys
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from time import perf_counter

from torch import Tensor

from lib.devices.clock import Clock
from lib.devices.collectives import Collective
from lib.devices.engine.mail import Address, Letter, Mail, Message, Recv
from lib.devices.engine.turns import Turns
from lib.devices.engine.wording import describe, disagreement, short_ranks, table_of_the_stuck, where
from lib.devices.errors import DeadlockError, MismatchError
from lib.devices.handle import Handle
from lib.devices.meters import Meters
from lib.devices.pieces import row_major
from lib.devices.trace import Span
from lib.devices.traffic import Traffic, size_in_bytes


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


class Exchange:
    """The meeting place of one run. Devices reach it through their `Group`, which is named by `key` and `ranks`
    (the ranks of the cluster, in the order of the group); `rank`, `src` and `dst` count within the group."""

    def __init__(self, size: int, meters: Meters, clock: Clock | None = None, rendezvous: bool = False):
        self.size, self.meters, self.clock, self.rendezvous = size, meters, clock, rendezvous
        self.turns: Turns | None = None  # set while the run lasts
        self._meetings: dict[tuple[int, int], Meeting] = {}  # by key of the group and number of the call
        self._calls: dict[tuple[int, int], int] = defaultdict(int)  # key, rank -> collectives called so far
        self._mail = Mail()
        self._called: list[deque[Meeting]] = [deque() for _ in range(size)]  # per device, those without a time yet
        self._complete: dict[int, tuple] = {}  # by id: meetings to which all have come, and which have no time yet
        # cluster rank -> its call, and the group's ranks
        self._waits_for: dict[int, tuple[object, tuple[int, ...]]] = {}
        self._open: dict[Handle, str] = {}  # asynchronous calls nobody has waited for: where they were started
        self.ended: set[int] = set()  # cluster ranks whose program is over
        self._keys: dict[tuple, int] = {}

    def key_for(self, parent: int, ranks: tuple[int, ...], times: int) -> int:
        """The key of a sub-group: the same on all its members, which make it at the same place of the same program."""
        return self._keys.setdefault((parent, ranks, times), len(self._keys) + 1)

    def __reduce__(self) -> None:
        raise TypeError(
            "a Group cannot be saved: it is a connection between running devices. Save the state_dict() of a module in "
            "place of the module, or dense_state(...) of all devices' modules"
        )

    def join(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None) -> Meeting:
        """Device `rank` comes with `x`, and does not wait. The n-th call of each device belongs to the same meeting."""
        self._check_caller(ranks[rank], verb)
        number = self._calls[key, rank] = self._calls[key, rank] + 1
        meeting = self._meetings.setdefault((key, number), Meeting())
        self._check_match(meeting, ranks, rank, verb, x)
        meeting.verbs[rank], meeting.tensors[rank] = verb, x
        if self.clock is not None:
            meeting.came[rank] = self.clock.issue(ranks[rank])
            self._called[ranks[rank]].append(meeting)
        if len(meeting.verbs) == len(ranks):
            del self._meetings[key, number]
            self._hold(meeting, ranks, verb)
        return meeting

    def collect(self, meeting: Meeting, ranks: tuple[int, ...], rank: int, verb: Collective) -> Tensor | None:
        """What device `rank` gets; waits until all have come."""
        self._check_caller(ranks[rank], verb)
        if not meeting.over:
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

        line = meeting.lines[rank] = where(sys._getframe())
        return self._open_handle(verb, ranks, rank, line, lambda: self.collect(meeting, ranks, rank, verb))

    def _open_handle(
        self, call: object, ranks: tuple[int, ...], rank: int, line: str, collect: Callable[[], Tensor | None]
    ) -> Handle:
        def close() -> Tensor | None:
            del self._open[handle]
            return collect()

        handle = Handle(f"{call} in group {short_ranks(ranks)}", close)
        self._open[handle] = f"rank {ranks[rank]} in {line}"
        return handle

    def _hold(self, meeting: Meeting, ranks: tuple[int, ...], verb: Collective) -> None:
        """The last to come does the work for all."""
        tensors = [meeting.tensors[r] for r in range(len(ranks))]
        for r, traffic in zip(ranks, verb.traffic(tensors), strict=True):
            self.meters.charge(r, verb.name, traffic)
        if self.clock is None:
            meeting.results = verb.outcome(tensors)
            self._finish(meeting, ranks)
        else:
            with self.clock.paused():
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
        meeting.begin, meeting.end = self.clock.collective(ranks, verb, tensors, came)
        for r in ranks:
            self._called[r].remove(meeting)
        self._finish(meeting, ranks)

    def _finish(self, meeting: Meeting, ranks: tuple[int, ...]) -> None:
        meeting.over = True
        for r in sorted(meeting.waiting):
            self.turns.ready(ranks[r])

    def send(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> None:
        """Puts `x` into the mailbox of `dst` and goes on; with rendezvous, waits until `dst` takes it."""
        me, call, address = ranks[rank], Message("send", dst, tag), Address(key, rank, dst, tag)
        self._check_caller(me, call)
        self.meters.charge(me, "send", Traffic(messages_sent=1, bytes_sent=size_in_bytes(x)))
        if self.clock is not None:
            self.clock.issue(me)
        with nullcontext() if self.clock is None else self.clock.paused():
            letter = Letter(row_major(x.clone()), ranks)  # what the sender does to its tensor later is its own affair
        if self.clock is not None and not self.rendezvous:
            letter.begin, letter.end = self.clock.send(me, ranks[dst], letter.size)
        recv = self._mail.put(address, letter)
        if recv is not None:
            self._deliver(address, letter, recv)
        elif self.rendezvous:
            letter.sender_waits = True
            self._wait(me, call, ranks)
        if self.clock is not None and self.rendezvous:
            self.clock.wait_until(me, letter.end, f"send to {ranks[dst]}", letter.begin)

    def recv(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Tensor:
        """The oldest message from `src` under `tag`; waits until there is one."""
        return self._fetch(self._ask(key, ranks, rank, src, tag), ranks, rank, Message("recv", src, tag))

    def expect(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Handle:
        """A handle of `recv`: the message comes in meanwhile."""
        recv, call = self._ask(key, ranks, rank, src, tag), Message("recv", src, tag)
        return self._open_handle(
            call, ranks, rank, where(sys._getframe()), lambda: self._fetch(recv, ranks, rank, call)
        )

    def _ask(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Recv:
        self._check_caller(ranks[rank], Message("recv", src, tag))
        recv, address = Recv(0.0 if self.clock is None else self.clock.issue(ranks[rank])), Address(key, src, rank, tag)
        letter = self._mail.ask(address, recv)
        if letter is not None:
            self._deliver(address, letter, recv)
        return recv

    def _deliver(self, address: Address, letter: Letter, recv: Recv) -> None:
        """The letter and its recv have found each other; the one of the two that came first may be waiting."""
        recv.letter = letter
        src, dst = letter.ranks[address.src], letter.ranks[address.dst]
        if self.clock is not None:
            if self.rendezvous:
                letter.begin, letter.end = self.clock.send(src, dst, letter.size, recv.called)
            recv.begin, recv.end = self.clock.receive(src, dst, letter.size, letter.begin)
        if letter.sender_waits:
            self.turns.ready(src)
        if recv.waited_for:
            self.turns.ready(dst)

    def _fetch(self, recv: Recv, ranks: tuple[int, ...], rank: int, call: Message) -> Tensor:
        me = ranks[rank]
        self._check_caller(me, call)
        if recv.letter is None:
            recv.waited_for = True
            self._wait(me, call, ranks)
        x = recv.letter.x
        if self.clock is not None:
            self.clock.wait_until(me, recv.end, f"recv from {ranks[call.peer]}", recv.begin)
            self.clock.memory.see(me, [x], call.verb, derived=True)
        self.meters.charge(me, "recv", Traffic(messages_received=1, bytes_received=size_in_bytes(x)))
        return x

    def now(self, me: int) -> float:
        """The virtual time of the device with rank `me` in the cluster; without hardware, that of the wall clock."""
        return perf_counter() if self.clock is None else self.clock.now[me]

    def note(self, me: int, name: str, start: float) -> None:
        """Device `me` calls the time from `start` to now `name`."""
        if self.clock is not None:
            self.clock.trace.spans.append(Span(me, name, start, self.clock.now[me]))

    def check_nothing_left(self) -> None:
        """At the end of a run, every message must have been received and every handle waited for."""
        for handle, started in self._open.items():
            raise MismatchError(f"{started}: started {handle}. Call wait() on it, or leave out async_op=True")
        for (_, src, dst, tag), letters in self._mail.letters.items():
            if letters:
                first, ranks = letters[0].x, letters[0].ranks
                raise MismatchError(
                    f"in group {short_ranks(ranks)} rank {src} sent to rank {dst} (tag={tag}) what nobody received: "
                    f"{len(letters)} message(s), the first of shape {tuple(first.shape)}. "
                    f"Add recv(src={src}, tag={tag}) to the program of rank {dst}, or take the send away"
                )

    def stuck(self) -> DeadlockError | None:
        """The error for the moment when nobody can move. None when somebody can: a collective that waits for the link
        of one that was called before it, but to which the others come only afterwards, gets it now."""
        while self._complete and not self.turns.anyone_ready:
            self._give_links(next(iter(self._complete.values()))[0])
        if self.turns.anyone_ready:
            return None
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
