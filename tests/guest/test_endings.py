"""What a device takes away from Python is gone for it alone; what it leaves to `atexit` comes at its own end."""

import atexit
import os
import sys

import pytest
import torch
import torch.distributed as dist

from lib.devices import Cluster, DeadlockError
from lib.guest.program import guest


def run(program, *args, size=2):
    return Cluster(size).run(guest(program, *args))


def takes_away():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    if rank == 1:
        del sys.stdin, sys.excepthook
        os.environ = {**os.environ, "MINE": "1"}  # noqa: B003  as programs do
    dist.barrier()
    found = hasattr(sys, "stdin"), hasattr(sys, "excepthook"), type(os.environ) is dict, os.getenv("MINE")
    dist.barrier()
    return found, os.environ["RANK"]


def test_what_it_takes_away_is_gone_for_it_alone():
    before = sys.stdin, sys.excepthook, os.environ
    has_all, has_less = (True, True, False, None), (False, False, True, "1")
    assert run(takes_away, size=3) == [(has_all, "0"), (has_less, "1"), (has_all, "2")]
    assert (sys.stdin, sys.excepthook, os.environ) == before


def leaves(said, code=None):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    atexit.register(dist.destroy_process_group)

    @atexit.register
    def last_sum():
        x = torch.ones(1)
        dist.all_reduce(x)
        said.append((rank, x.item()))

    atexit.register(said.append, "never")
    atexit.unregister(said.append)
    if code is not None:
        sys.exit(code)


@pytest.mark.parametrize("code", [None, 0])
def test_what_is_left_to_atexit_comes_at_the_end_of_each_device(code):
    said = []
    run(leaves, said, code)
    assert sorted(said) == [(0, 2.0), (1, 2.0)]


def fails_at_its_end():
    dist.init_process_group("gloo")
    atexit.register(dist.destroy_process_group)
    dist.destroy_process_group()


def test_an_error_there_is_told_and_changes_nothing():
    with pytest.warns(UserWarning, match="rank 1: destroy_process_group, left to atexit, raised AssertionError"):
        run(fails_at_its_end)


def waits_at_its_end():
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        atexit.register(dist.barrier)


def test_but_a_deadlock_remains_one():
    with pytest.raises(DeadlockError, match="barrier"):
        run(waits_at_its_end)
