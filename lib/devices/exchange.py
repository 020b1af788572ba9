"""Where devices meet: collectives wait here until all have come, messages until they are fetched."""

import sys
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from lib.devices.collectives import Collective, Traffic, size_in_bytes
from lib.devices.errors import DeadlockError, MismatchError
from lib.devices.explain import describe, disagreement, short_ranks, table_of_the_stuck, where
from lib.devices.meters import Meters
from lib.devices.turns import Turns


class Message(NamedTuple):
    """A send or a recv, as the errors show it."""

    verb: str
    peer: int
    tag: int

    def __str__(self) -> str:
        return f"{self.verb}({'dst' if self.verb == 'send' else 'src'}={self.peer}, tag={self.tag})"


@dataclass
class Meeting:
    """One collective in the making: who of the group has come, and with what. Keys are ranks in the group."""

    verbs: dict[int, Collective] = field(default_factory=dict)
    tensors: dict[int, Tensor | None] = field(default_factory=dict)
    measure: int | None = None  # the rank that all who come later must agree with
    results: list[Tensor | None] = field(default_factory=list)


class Exchange:
    """The meeting place of one run. Devices reach it through their `Group`, which is named by `key` and `ranks`
    (the ranks of the cluster, in the order of the group); `rank`, `src` and `dst` count within the group."""

    def __init__(self, size: int, meters: Meters):
        self.size, self.meters = size, meters
        self.turns: Turns | None = None  # set while the run lasts
        self._meetings: dict[object, Meeting] = {}
        self._mail: dict[tuple, deque[Tensor]] = defaultdict(deque)  # address -> messages not yet fetched
        self._receivers: dict[tuple, int] = {}  # address -> cluster rank that waits for it
        self._waits_for: dict[int, tuple[object, tuple[int, ...]]] = {}  # cluster rank -> its call, and the group's ranks
        self.ended: set[int] = set()  # cluster ranks whose program is over
        self._keys: dict[tuple, int] = {}

    def key_for(self, parent: int, ranks: tuple[int, ...], times: int) -> int:
        """The key of a sub-group: the same on all its members, which make it at the same place of the same program."""
        return self._keys.setdefault((parent, ranks, times), len(self._keys) + 1)

    def meet(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None) -> Tensor | None:
        """Device `rank` comes with `x`; returns what it gets once all have come."""
        self._check_caller(ranks[rank], verb)
        meeting = self._meetings.setdefault(key, Meeting())
        self._check_match(meeting, ranks, rank, verb, x)
        meeting.verbs[rank], meeting.tensors[rank] = verb, x
        if len(meeting.verbs) < len(ranks):
            self._wait(ranks[rank], verb, ranks)
        else:  # the last to come does the work for all
            del self._meetings[key]
            tensors = [meeting.tensors[r] for r in range(len(ranks))]
            for r, traffic in zip(ranks, verb.traffic(tensors), strict=True):
                self.meters.charge(r, verb.name, traffic)
            meeting.results = verb.results(tensors)
            meeting.tensors.clear()
            for r in ranks:
                if r != ranks[rank]:
                    self.turns.ready(r)
        result, meeting.results[rank] = meeting.results[rank], None
        return result

    def send(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> None:
        """Puts `x` into the mailbox of `dst` and goes on."""
        self._check_caller(ranks[rank], Message("send", dst, tag))
        self.meters.charge(ranks[rank], "send", Traffic(messages_sent=1, bytes_sent=size_in_bytes(x)))
        address = (key, ranks, rank, dst, tag)
        self._mail[address].append(x.clone())  # a copy: what the sender does to `x` later is its own affair
        if address in self._receivers:
            self.turns.ready(self._receivers.pop(address))

    def recv(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Tensor:
        """The oldest message from `src` under `tag`; waits until there is one."""
        call = Message("recv", src, tag)
        self._check_caller(ranks[rank], call)
        address = (key, ranks, src, rank, tag)
        if not self._mail[address]:
            self._receivers[address] = ranks[rank]
            self._wait(ranks[rank], call, ranks)
        x = self._mail[address].popleft()
        self.meters.charge(ranks[rank], "recv", Traffic(messages_received=1, bytes_received=size_in_bytes(x)))
        return x

    def check_mail(self) -> None:
        """At the end of a run, nothing may be left in the mail."""
        for (_, ranks, src, dst, tag), messages in self._mail.items():
            if messages:
                raise MismatchError(
                    f"in group {short_ranks(ranks)} rank {src} sent to rank {dst} (tag={tag}) what nobody received: "
                    f"{len(messages)} message(s), the first of shape {tuple(messages[0].shape)}. "
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

    def _check_match(self, meeting: Meeting, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None) -> None:
        first = meeting.measure
        if first is not None:
            what = disagreement(meeting.verbs[first], meeting.tensors[first], verb, x)
            if what:
                frames = sys._current_frames()
                calls = [(first, meeting.verbs[first], meeting.tensors[first]), (rank, verb, x)]
                lines = [
                    f"  rank {ranks[r]}: {describe(v, t)}, in {where(self.turns.frame_of(ranks[r], frames))}"
                    for r, v, t in sorted(calls, key=lambda call: call[0])
                ]
                del frames  # as in `stuck`
                raise MismatchError("\n".join([f"in group {short_ranks(ranks)} {what}.", *lines]))
        if first is None or meeting.tensors[first] is None and x is not None:
            meeting.measure = rank  # not everyone must bring a tensor: the first who does is the better measure
