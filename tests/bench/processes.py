"""The same MLP in real processes that talk by gloo: what the simulator stands for, and has to beat on one machine."""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

from bench.plan import Reading, now, spent


class CopyTo(Function):
    """Forward identity, backward all-reduce."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad


class ReduceFrom(Function):
    """Forward all-reduce, backward identity."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad


def mlp(x, up, up_bias, down, down_bias):
    return ReduceFrom.apply(F.linear(F.gelu(F.linear(CopyTo.apply(x), up, up_bias)), down)) + down_bias


def worker(rank: int, size: int, threads: int, meeting_place: str, model: nn.Sequential, x, above, pipe) -> None:
    """One process: waits for orders (backward, steps), answers with its (start, end) marks."""
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine, whatever its name resolves to
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=size)
    up, _, down = model
    pieces = up.weight.tensor_split(size, 0)[rank], up.bias.tensor_split(size)[rank]
    pieces = *pieces, down.weight.tensor_split(size, 1)[rank], down.bias
    weights = [piece.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for piece in pieces]

    def step(backward: bool) -> None:
        if not backward:
            with torch.no_grad():
                mlp(x, *weights)
            return
        for weight in weights:
            weight.grad = None
        mlp(x.detach().requires_grad_(), *weights).backward(above)

    pipe.send("ready")
    while order := pipe.recv():
        backward, steps = order
        step(backward)
        dist.barrier()
        start = now()
        for _ in range(steps):
            step(backward)
        dist.barrier()
        pipe.send((start, now()))
    dist.destroy_process_group()


class Processes:
    """`size` processes that sleep until they are timed, so that they do not disturb what is measured in between."""

    def __init__(self, size: int, threads: int, dense: tuple):
        self.size, self.threads = size, threads
        model, x, above = dense
        self._folder = tempfile.TemporaryDirectory()
        spawn = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(size):
            mine, theirs = spawn.Pipe()
            args = rank, size, threads, str(Path(self._folder.name) / "store"), model, x, above, theirs
            process = spawn.Process(target=worker, args=args, daemon=True)
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
