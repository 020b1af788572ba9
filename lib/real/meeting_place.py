"""The meeting place of real processes: what `Exchange` is to simulated devices, over torch.distributed.

A `Group` asks either in the same words, so a program cannot tell which one it runs on. Every process has its own:
collectives go through the `Channel` of their group, messages through the `Mailbox`.
"""

import hashlib
import sys
import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lib.devices.collectives import AllGather, Collective
from lib.devices.engine.mail import Message
from lib.devices.engine.wording import short_ranks, where
from lib.devices.handle import Handle
from lib.devices.meters import Meters
from lib.devices.traffic import Traffic, size_in_bytes
from lib.real.channel import Call, Channel, Done, Hookup, naming_a_lost_connection, patiently
from lib.real.farewell import Report, part
from lib.real.lookout import Lookout, Waiting
from lib.real.mailbox import Address, Mailbox
from lib.real.over import Over, refuse

_WORLD = 0  # the key of the first group


class Joined(NamedTuple):
    """A collective that was called, and not yet begun."""

    channel: Channel
    call: Call


class RealMeetingPlace:
    """The meeting place of one run, as process `rank` of `size` sees it. `store` is shared by all and is of this run
    alone. A `MeetingPlace`."""

    def __init__(self, store: dist.Store, rank: int, size: int, hookup: Hookup):
        self.rank, self.size, self.meters = rank, size, Meters(size)
        self._store, self._hookup = store, hookup
        self._lookout = Lookout(store, rank, size)
        self._channels: dict[int, Channel] = {}
        self._open: dict[Handle, str] = {}  # asynchronous calls nobody has waited for: where they were started
        self._world = self._channel(_WORLD, tuple(range(size)), rank)
        self._mailbox = Mailbox(self._world.connection(patiently) if size > 1 else None, rank, hookup.gpu)
        self._over = False

    def key_for(self, parent: int, ranks: tuple[int, ...], times: int) -> int:
        """The key of a sub-group, which its members find without a word: each from the same facts."""
        name = repr((parent, ranks, times)).encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest())

    def join(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None) -> Joined:
        """Device `rank` comes with `x`, and does not wait."""
        self._check_running(verb)
        return Joined(self._channel(key, ranks, rank), Call(verb, x))

    def collect(self, joined: Joined, ranks: tuple[int, ...], rank: int, verb: Collective) -> Tensor | None:
        """What device `rank` gets; waits until all have come."""
        channel, call = joined
        if channel.busy:
            return self.hand_out(joined, ranks, rank, verb).wait()
        return self._charged(verb, channel.run(call, self._hoping(verb, channel)))

    def hand_out(self, joined: Joined, ranks: tuple[int, ...], rank: int, verb: Collective) -> Handle:
        """A handle that collects later. It is remembered until then, with the line that started it."""
        channel, call = joined
        line = where(sys._getframe())
        under_way = channel.start(call._replace(line=line))

        def collect() -> Tensor | None:
            self._check_running(verb)
            self._hoping(verb, channel)(lambda seconds: bool(wait([under_way], seconds).done))
            result = self._charged(verb, under_way.result())
            if result is not None and result.is_cuda:
                result.record_stream(torch.cuda.current_stream(result.device))  # it was made on another
            return result

        return self._open_handle(verb, ranks, line, collect)

    def _open_handle(
        self, call: object, ranks: tuple[int, ...], line: str, collect: Callable[[], Tensor | None]
    ) -> Handle:
        def close() -> Tensor | None:
            del self._open[handle]
            return collect()

        handle = Handle(f"{call} in group {short_ranks(ranks)}", close)
        self._open[handle] = f"rank {self.rank} in {line}"
        return handle

    def send(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> None:
        """Hands `x` over for `dst` and goes on."""
        self._check_running(Message("send", dst, tag))
        self._mailbox.send(Address(key, ranks, rank, dst, tag), x)
        self.meters.charge(self.rank, "send", Traffic(messages_sent=1, bytes_sent=size_in_bytes(x)))

    def recv(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Tensor:
        """The oldest message from `src` under `tag`; waits until there is one."""
        return self._asked(key, ranks, rank, src, tag)()

    def expect(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Handle:
        """A handle of `recv`: the message comes in meanwhile."""
        fetch, line = self._asked(key, ranks, rank, src, tag), where(sys._getframe())
        return self._open_handle(Message("recv", src, tag), ranks, line, fetch)

    def _asked(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Callable[[], Tensor]:
        call = Message("recv", src, tag)
        self._check_running(call)
        fetch = self._mailbox.expect(Address(key, ranks, src, rank, tag))

        def waiting(arrived):
            self._lookout.wait(arrived, call, ranks, lambda: None if self._mailbox.moving else 0)

        def collect() -> Tensor:
            self._check_running(call)
            with naming_a_lost_connection(self.rank, call, ranks):
                x = fetch(waiting)
            self.meters.charge(self.rank, "recv", Traffic(messages_received=1, bytes_received=size_in_bytes(x)))
            return x

        return collect

    def now(self, me: int) -> float:
        """The wall clock of this machine."""
        return time.perf_counter()

    def note(self, me: int, name: str, start: float) -> None:
        """Nothing: a run of real processes has no trace, unless a stopwatch stands before it."""

    def finish(self) -> tuple[Meters, Tensor]:
        """The program of this process is over. Waits for the others; returns the meters of all, and where the random
        stream of rank 0 stands. MismatchError when messages or handles are left over, as in the simulation."""
        box = self._mailbox
        shapes = {address: list(some) for address, some in box.shapes.items()}
        unfinished = [f"{started}: started {handle}" for handle, started in self._open.items()]
        mine = Report(self.meters.rows(), box.sent, box.received, shapes, unfinished, torch.get_rng_state())
        return part(mine, self._store, self._lookout, self.rank, self.size)

    def share(self, text: bytes) -> list[bytes]:
        """What all processes bring, in rank order, in every process. Is charged to no meter."""
        mine, verb = torch.frombuffer(bytearray(text), dtype=torch.uint8), AllGather(0)
        lengths, texts = (
            self._world.run(Call(verb, x), self._hoping(verb, self._world)).result
            for x in (torch.tensor([len(text)], device="cpu"), mine)
        )
        return [piece.numpy().tobytes() for piece in texts.split(lengths.tolist())]

    def close(self, error: BaseException | None) -> None:
        """Ends the threads; the groups are dead now. Tells the others when this process has failed with `error`."""
        self._over = True
        if error is not None:
            self._lookout.fail(error)
        self._mailbox.close()
        for channel in self._channels.values():
            channel.close()
        # A connection that is freed waits for its threads, and to forget their last work they may need the GIL: now.
        time.sleep(0.01)

    def abroad(self) -> Over:
        """What stands in its place in a result that travels to another process, where the run has ended."""
        return Over(self.rank)

    def __reduce__(self) -> tuple:
        return Over, (self.rank,)  # a result may hold its group, as every parallel layer does

    def _channel(self, key: int, ranks: tuple[int, ...], rank: int) -> Channel:
        if key not in self._channels:
            store = dist.PrefixStore(f"group {key}", self._store)
            self._channels[key] = Channel(store, ranks, rank, self._hookup)
        return self._channels[key]

    def _charged(self, verb: Collective, done: Done) -> Tensor | None:
        self.meters.charge(self.rank, verb.name, done.traffic)
        return done.result

    def _hoping(self, verb: Collective, channel: Channel) -> Waiting:
        return lambda arrived: self._lookout.wait(arrived, verb, channel.ranks, lambda: channel.step)

    def _check_running(self, call: object) -> None:
        if self._over:
            refuse(self.rank, call)
