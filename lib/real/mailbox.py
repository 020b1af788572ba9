"""Messages between real processes: each goes straight to its receiver, behind a header that says what it is.

A message never waits for its receiver: gloo keeps it, and sends it when the receiver asks. So a ring in which all send
first and receive then moves on. Messages from a GPU travel by way of the CPU: NCCL's own would wait for the receiver.
"""

import time
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import wait
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lib.devices.pieces import row_major
from lib.devices.rooted import Broadcast
from lib.real.announcement import LENGTH, Announcement
from lib.real.lookout import Waiting
from lib.real.moves import as_bytes
from lib.real.worker import Worker


class Address(NamedTuple):
    """Where a message goes: from `src` to `dst` (ranks in the group) under `tag`."""

    key: int
    ranks: tuple[int, ...]
    src: int
    dst: int
    tag: int

    def number(self) -> int:
        """The tag under which gloo carries it: 31 bits."""
        return zlib.crc32(repr((self.key, self.tag)).encode()) >> 1


class Mailbox:
    """What one process of the world has sent and received. `pg` connects the world; `gpu` is this process's, if any."""

    def __init__(self, pg: dist.ProcessGroup, rank: int, gpu: torch.device | None):
        self._pg, self._rank, self._gpu = pg, rank, gpu
        self._to_itself: dict[Address, deque[Tensor]] = defaultdict(deque)
        self._sending = Worker()
        self._receiving: dict[Address, Worker] = {}  # a thread for each: one that has not come holds up no other
        self.sent: Counter[Address] = Counter()
        self.received: Counter[Address] = Counter()
        self.shapes: dict[Address, deque[tuple[int, ...]]] = defaultdict(deque)  # of the latest, received or not
        self._arriving = 0  # messages whose header has come

    def send(self, address: Address, x: Tensor) -> None:
        """Hands `x` over and goes on."""
        parts = [Announcement.of(Broadcast(address.src), x).encode()]  # a message is a broadcast to one
        self.sent[address] += 1
        self.shapes[address].append(tuple(x.shape))
        dst = address.ranks[address.dst]
        if dst == self._rank:
            self._to_itself[address].append(row_major(x.clone()))
            return
        if x.numel() and not x.is_meta:
            # A copy: what the sender does to its tensor later is its own affair.
            parts.append(as_bytes(x).cpu() if x.is_cuda else as_bytes(x).clone())
        works = [self._pg.send([part], dst, address.number()) for part in parts]
        self._sending.do(lambda: self._see_off(address, works, parts))

    def _see_off(self, address: Address, works: list[dist.Work], parts: list[Tensor]) -> None:
        for work, _ in zip(works, parts, strict=True):  # the parts must live until they are gone
            work.wait()
        self.shapes[address].popleft()

    @property
    def moving(self) -> bool:
        """Whether a message is on its way that was waited for."""
        return self._arriving > 0

    def expect(self, address: Address) -> Callable[[Waiting], Tensor]:
        """Lets the oldest message come in. Returns a function that gives it, `waiting` as long as there is hope."""
        if address.ranks[address.src] == self._rank:
            return lambda waiting: self._own(address, waiting)
        if address not in self._receiving:
            self._receiving[address] = Worker()
        arriving = self._receiving[address].do(lambda: self._receive(address))

        def fetch(waiting: Waiting) -> Tensor:
            waiting(lambda seconds: bool(wait([arriving], seconds).done))
            self.received[address] += 1
            return arriving.result()

        return fetch

    def _own(self, address: Address, waiting: Waiting) -> Tensor:
        queue = self._to_itself[address]
        waiting(lambda seconds: bool(queue) or time.sleep(seconds))
        self.shapes[address].popleft()
        self.received[address] += 1
        return queue.popleft()

    def _receive(self, address: Address) -> Tensor:
        src, header = address.ranks[address.src], torch.empty(LENGTH, dtype=torch.int64, device="cpu")
        self._pg.recv([header], src, address.number()).wait()
        self._arriving += 1
        try:
            told = Announcement.decode(header.tolist())
            x = torch.empty(told.shape, dtype=told.dtype, device="meta" if told.device == "meta" else "cpu")
            if x.numel() and not x.is_meta:
                self._pg.recv([x.view(-1).view(torch.uint8)], src, address.number()).wait()
            return x if told.device != "cuda" else x.to(self._gpu)
        finally:
            self._arriving -= 1

    def close(self) -> None:
        """Ends the threads."""
        for worker in self._receiving.values():
            worker.stop()
        self._sending.stop()
