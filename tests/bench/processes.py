"""The same layers in real processes that talk by gloo: what the simulator stands for, and has to beat."""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.plain import Split, pieces
from bench.plan import Reading, now, spent
from bench.rounds import Work, step


def worker(rank: int, size: int, threads: int, meeting_place: str, split: Split, dense: Work, pipe) -> None:
    """One process: waits for orders (backward, steps), answers with its (start, end) marks."""
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine, whatever its name resolves to
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=size)

    def cut(whole: Tensor, dim: int | None) -> nn.Parameter:
        return nn.Parameter(pieces(whole, dim, size)[rank])

    model, *data = dense
    mine = split(model, cut), *data
    pipe.send("ready")
    while order := pipe.recv():
        backward, steps = order
        step(*mine, backward)
        dist.barrier()
        start = now()
        for _ in range(steps):
            step(*mine, backward)
        dist.barrier()
        pipe.send((start, now()))
    dist.destroy_process_group()


class Processes:
    """`size` processes that sleep until they are timed, so that they do not disturb what is measured in between."""

    def __init__(self, size: int, threads: int, split: Split, dense: Work):
        self.size, self.threads = size, threads
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("forkserver")  # forks of a process that has only imported: fresh
        context.set_forkserver_preload(["bench.plain", "bench.rounds"])
        self._pipes, self._processes = [], []
        for rank in range(size):
            mine, theirs = context.Pipe()
            args = rank, size, threads, str(Path(self._folder.name) / "store"), split, dense, theirs
            process = context.Process(target=worker, args=args, daemon=True)
            process.start()
            theirs.close()  # so that the death of a process ends our wait for it
            self._pipes.append(mine)
            self._processes.append(process)

    def __enter__(self) -> "Processes":
        for pipe in self._pipes:
            pipe.recv()
        return self

    def __exit__(self, *_) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()
        self._folder.cleanup()

    def time(self, backward: bool, steps: int) -> Reading:
        """Wall time from the first start to the last end; cpu time and page faults of all processes together."""
        for pipe in self._pipes:
            pipe.send((backward, steps))
        marks = [pipe.recv() for pipe in self._pipes]
        each = [spent([mark]) for mark in marks]
        return Reading(spent(marks).wall, sum(one.cpu for one in each), sum(one.faults for one in each))
