"""Tests as other people write them: each spawns processes. Run by tests/guest/test_real_commands.py."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing import spawn

WORLD = {}


def worker(rank, size, port, out):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    WORLD["rank"] = rank  # would be overwritten if the devices had one module
    x = torch.full((2,), float(rank))
    dist.all_reduce(x)
    assert WORLD["rank"] == rank
    out[rank] = x[0]
    dist.destroy_process_group()


def broken(rank, size):
    assert rank != 1, "rank 1 is wrong"


@pytest.mark.parametrize("size", [2, 4])
def test_sum(size):
    out = torch.zeros(size).share_memory_()
    spawn(worker, args=(size, 29501, out), nprocs=size, join=True)
    assert out.tolist() == [sum(range(size))] * size
    assert not WORLD


def launch(rank, function, *args):
    warnings.warn("an error in the test, and a word in a process that it starts", FutureWarning, stacklevel=1)
    function(rank, *args)


@pytest.mark.filterwarnings("error")
def test_sum_of_a_function_that_is_handed_on():
    out = torch.zeros(3).share_memory_()
    mp.spawn(launch, args=(worker, 3, 29502, out), nprocs=3)
    assert out.tolist() == [3, 3, 3]
    assert not WORLD


def test_what_a_process_raises():
    with pytest.raises(mp.ProcessRaisedException, match="rank 1 is wrong"):
        mp.spawn(broken, args=(2,), nprocs=2)


def test_without_processes():
    assert not dist.is_initialized()
