"""One group of real processes: how its members find each other, and its collectives, one after another."""

import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lib.devices.collectives import Collective
from lib.devices.engine.wording import describe, disagreement, short_ranks, where
from lib.devices.errors import DeadlockError, MismatchError
from lib.devices.pieces import row_major
from lib.devices.traffic import Traffic
from lib.real.announcement import LENGTH, Announcement
from lib.real.lookout import Arrived, Waiting, poll
from lib.real.moves import perform
from lib.real.worker import Worker, in_a_stream_of_its_own

# A process that waits in vain is noticed by the Lookout, one that has died by its connections: no time limit is needed.
FOREVER = timedelta(days=30)
_LINE_BYTES = 512


class Hookup(NamedTuple):
    """What a process is connected by: `network` (a device of gloo) for what lies in the memory of the CPU, and through
    NCCL its own `gpu`, if it has one."""

    network: Any
    gpu: torch.device | None


class Call(NamedTuple):
    """A collective that this process takes part in. `line` is where an asynchronous one was started."""

    verb: Collective
    x: Tensor | None
    line: str | None = None


class Done(NamedTuple):
    """What came of it: this process's result, and what it moved."""

    result: Tensor | None
    traffic: Traffic


class Channel:
    """A group seen from its member `rank`; `ranks` are the members' ranks in the world, `store` is the group's own.
    Connects when first used, so a group that is never used costs nothing, and making one is no communication."""

    def __init__(self, store: dist.Store, ranks: tuple[int, ...], rank: int, hookup: Hookup):
        self.ranks, self._rank, self._store, self._hookup = ranks, rank, store, hookup
        self._pg: dist.ProcessGroup | None = None
        self._worker: Worker | None = None
        self._last: Future | None = None
        self._calls = 0
        self.step: int | None = None  # the number of the call whose other members are waited for; None: of none

    def connection(self, waiting: Waiting) -> dist.ProcessGroup:
        """Waits for all members, the first time, and connects them. (`dist.new_group` would need the others too.)"""
        if self._pg is None:
            size = len(self.ranks)
            self._store.set(f"came {self._rank}", "")
            keys = [f"came {r}" for r in range(size)]
            waiting(lambda seconds: poll(lambda: self._store.check(keys), seconds))
            self._pg = _connect(self._store, self._rank, size, self._hookup)
        return self._pg

    @torch.no_grad()
    def run(self, call: Call, waiting: Waiting) -> Done:
        """One collective, from the first word to the result."""
        if len(self.ranks) == 1:
            return Done(call.verb.outcome([call.x])[0], call.verb.traffic([call.x])[0])
        self._calls += 1
        self.step = self._calls
        try:
            with naming_a_lost_connection(self.ranks[self._rank], call.verb, self.ranks):
                pg = self.connection(waiting)
                announced = self._announce(call, pg, waiting)
                self.step = None
                self._check(call, announced, pg)
                traffic = call.verb.traffic([a.without_data() for a in announced])[self._rank]
                with torch.cuda.device(self._hookup.gpu) if self._hookup.gpu else nullcontext():
                    result = perform(call.verb, call.x, announced, pg)
                    return Done(None if result is None else row_major(result), traffic)
        finally:
            self.step = None

    def start(self, call: Call) -> Future:
        """The call in a thread of this group, behind those that were started before."""
        if self._worker is None:
            self._worker = Worker()
        job, gpu = partial(self.run, call, patiently), self._hookup.gpu
        self._last = self._worker.do(job if gpu is None else in_a_stream_of_its_own(job, gpu))
        return self._last

    @property
    def busy(self) -> bool:
        """Whether calls that were started are not done yet."""
        return self._last is not None and not self._last.done()

    def close(self) -> None:
        """Ends the thread."""
        if self._worker is not None:
            self._worker.stop()

    def _announce(self, call: Call, pg: dist.ProcessGroup, waiting: Waiting) -> list[Announcement]:
        mine = Announcement.of(call.verb, call.x).encode()
        everyone = torch.empty(len(self.ranks) * LENGTH, dtype=mine.dtype, device="cpu")
        work = dist.all_gather_single(everyone, mine, group=pg, async_op=True)
        waiting(lambda seconds: _has_ended(work, seconds))
        work.wait()
        return [Announcement.decode(row) for row in everyone.view(-1, LENGTH).tolist()]

    def _check(self, call: Call, announced: list[Announcement], pg: dist.ProcessGroup) -> None:
        """All processes have the same announcements before them, so all raise the same MismatchError, or none."""
        first = 0
        for r, other in enumerate(announced):
            measure = announced[first]
            what = disagreement(measure.verb, measure.brings, other.verb, other.brings)
            if what:
                lines = self._lines(call, pg)
                shown = [
                    f"  rank {self.ranks[i]}: {describe(announced[i].verb, announced[i].brings)}, in {lines[i]}"
                    for i in (first, r)
                ]
                raise MismatchError("\n".join([f"in group {short_ranks(self.ranks)} {what}.", *shown]))
            if measure.brings is None:
                first = r  # not everyone must bring a tensor: the first who does is the better measure
        if announced[first].device == "cuda" and self._hookup.gpu is None:
            raise RuntimeError(
                f"{call.verb} on rank {self.ranks[self._rank]} of group {short_ranks(self.ranks)}: tensors on CUDA "
                "need a GPU for each process. Start as many processes as there are GPUs, or keep the tensors on the CPU"
            )

    def _lines(self, call: Call, pg: dist.ProcessGroup) -> list[str]:
        text = (call.line or where(sys._getframe())).encode()[:_LINE_BYTES].ljust(_LINE_BYTES)
        everyone = torch.empty(len(self.ranks) * _LINE_BYTES, dtype=torch.uint8, device="cpu")
        dist.all_gather_single(everyone, torch.frombuffer(bytearray(text), dtype=torch.uint8), group=pg)
        return [bytes(row.tolist()).decode(errors="ignore").rstrip() for row in everyone.view(-1, _LINE_BYTES)]


@contextmanager
def naming_a_lost_connection(rank: int, call: object, ranks: tuple[int, ...]) -> Iterator[None]:
    """When a connection breaks inside, ConnectionError says in which call; the cause is elsewhere."""
    try:
        yield
    except (DeadlockError, MismatchError):
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ConnectionError(
            f"rank {rank} lost the others in {call} in group {short_ranks(ranks)}: a process has died or raised an "
            "error. See what the other ranks say"
        ) from error


def patiently(arrived: Arrived) -> None:
    """Waits without a lookout: the program's own thread, which waits for this one, keeps it."""
    while not arrived(3600.0):
        continue


def _connect(store: dist.Store, rank: int, size: int, hookup: Hookup) -> dist.ProcessGroup:
    pg = dist.ProcessGroup(store, rank, size)
    options = dist.ProcessGroupGloo._Options()
    options._devices, options._timeout = [hookup.network], FOREVER
    gloo = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, size, options)
    pg._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
    if hookup.gpu is not None:
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = FOREVER
        nccl = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, size, options)
        pg._register_backend(torch.device("cuda"), dist.ProcessGroup.BackendType.NCCL, nccl)
    return pg


def _has_ended(work: dist.Work, seconds: float) -> bool:
    try:
        work.wait(timedelta(seconds=seconds))
        return True
    except RuntimeError:  # either the seconds are over, or the work has failed: then the next wait() says why
        return work.is_completed()
