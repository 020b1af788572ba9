"""Messages between two devices: sent, received, and received later."""

import sys
from contextlib import nullcontext

from torch import Tensor

from lib.devices.clock import Clock
from lib.devices.counts import counted
from lib.devices.engine.mail import Address, Letter, Mail, Message, Recv
from lib.devices.engine.waiting import Waiting
from lib.devices.engine.wording import short_ranks, where
from lib.devices.errors import MismatchError
from lib.devices.handle import Handle
from lib.devices.meters import Meters
from lib.devices.pieces import row_major
from lib.devices.traffic import Traffic, size_in_bytes


class Post:
    """All messages of one run. A group is named by `key` and `ranks`; `rank`, `src` and `dst` count within it."""

    def __init__(self, waiting: Waiting, meters: Meters, clock: Clock | None, rendezvous: bool):
        self._waiting, self._meters, self._clock, self._rendezvous = waiting, meters, clock, rendezvous
        self._mail = Mail()

    def send(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> None:
        """Puts `x` into the mailbox of `dst` and goes on; with rendezvous, waits until `dst` takes it."""
        letter = self._put(key, ranks, rank, dst, tag, x)
        if self._rendezvous:
            self._see_off(letter, ranks, rank, Message("send", dst, tag))

    def offer(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> Handle | None:
        """Puts `x` into the mailbox of `dst` and goes on. With rendezvous, a handle that waits until `dst` takes it."""
        letter, call = self._put(key, ranks, rank, dst, tag, x), Message("send", dst, tag)
        if not self._rendezvous:
            return None
        return self._waiting.later(
            call, ranks, ranks[rank], where(sys._getframe()), lambda: self._see_off(letter, ranks, rank, call)
        )

    def _put(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> Letter:
        me, call, address = ranks[rank], Message("send", dst, tag), Address(key, rank, dst, tag)
        self._waiting.check_caller(me, call)
        self._meters.charge(me, "send", Traffic(messages_sent=1, bytes_sent=size_in_bytes(x)))
        if self._clock is not None:
            self._clock.issue(me)
        with nullcontext() if self._clock is None else self._clock.paused():
            letter = Letter(row_major(x.clone()), ranks)  # what the sender does to its tensor later is its own affair
        if self._clock is not None and not self._rendezvous:
            letter.begin, letter.end = self._clock.send(me, ranks[dst], letter.size)
        recv = self._mail.put(address, letter)
        if recv is not None:
            self._deliver(address, letter, recv)
        return letter

    def _see_off(self, letter: Letter, ranks: tuple[int, ...], rank: int, call: Message) -> None:
        me = ranks[rank]
        self._waiting.check_caller(me, call)
        if not letter.taken:
            letter.sender_waits = True
            self._waiting.wait(me, call, ranks)
        if self._clock is not None:
            self._clock.wait_until(me, letter.end, f"send to {ranks[call.peer]}", letter.begin)

    def recv(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Tensor:
        """The oldest message from `src` under `tag`; waits until there is one."""
        return self._fetch(self._ask(key, ranks, rank, src, tag), ranks, rank, Message("recv", src, tag))

    def expect(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Handle:
        """A handle of `recv`: the message comes in meanwhile."""
        recv, call = self._ask(key, ranks, rank, src, tag), Message("recv", src, tag)
        return self._waiting.later(
            call, ranks, ranks[rank], where(sys._getframe()), lambda: self._fetch(recv, ranks, rank, call)
        )

    def _ask(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Recv:
        me, address = ranks[rank], Address(key, src, rank, tag)
        self._waiting.check_caller(me, Message("recv", src, tag))
        recv = Recv(0.0 if self._clock is None else self._clock.issue(me))
        letter = self._mail.ask(address, recv)
        if letter is not None:
            self._deliver(address, letter, recv)
        return recv

    def _deliver(self, address: Address, letter: Letter, recv: Recv) -> None:
        """The letter and its recv have found each other; the one of the two that came first may be waiting."""
        recv.letter, letter.taken = letter, True
        src, dst = letter.ranks[address.src], letter.ranks[address.dst]
        if self._clock is not None:
            if self._rendezvous:
                letter.begin, letter.end = self._clock.send(src, dst, letter.size, recv.called)
            recv.begin, recv.end = self._clock.receive(src, dst, letter.size, letter.begin)
        if letter.sender_waits:
            self._waiting.turns.ready(src)
        if recv.waited_for:
            self._waiting.turns.ready(dst)

    def _fetch(self, recv: Recv, ranks: tuple[int, ...], rank: int, call: Message) -> Tensor:
        me = ranks[rank]
        self._waiting.check_caller(me, call)
        if recv.letter is None:
            recv.waited_for = True
            self._waiting.wait(me, call, ranks)
        x = recv.letter.x
        if self._clock is not None:
            self._clock.wait_until(me, recv.end, f"recv from {ranks[call.peer]}", recv.begin)
            self._clock.memory.see(me, [x], call.verb, derived=True)
        self._meters.charge(me, "recv", Traffic(messages_received=1, bytes_received=size_in_bytes(x)))
        return x

    def check_all_received(self) -> None:
        """At the end of a run: MismatchError names a message that nobody received."""
        for (_, src, dst, tag), letters in self._mail.letters.items():
            if letters:
                first, ranks = letters[0].x, letters[0].ranks
                raise MismatchError(
                    f"in group {short_ranks(ranks)} rank {src} sent to rank {dst} (tag={tag}) what nobody received: "
                    f"{counted(len(letters), 'message')}, the first of shape {tuple(first.shape)}. "
                    f"Add recv(src={src}, tag={tag}) to the program of rank {dst}, or take the send away"
                )
