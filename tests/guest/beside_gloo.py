"""One program of torch.distributed, run by real processes and by simulated devices."""

import torch
import torch.distributed as dist
from oracles.commands import one_thread

from lib.devices import Cluster
from lib.guest.program import guest

CLOSE = 5e-7  # of the largest number: sums of three terms or more, in another order


def by_devices(size, program, *args):
    """What `program(*args)` returns on each simulated device, which first says what a real process has said before."""
    with one_thread():
        return Cluster(size).run(guest(_started, program, *args))


def _started(program, *args):
    dist.init_process_group("gloo")
    return program(*args)


def compare(worlds, size, program, *args, close=0):
    """Equal to the bit in every tensor, number, word and type; or `close`, relative to the largest number."""
    real = worlds[size].run(program, *args)
    simulated = by_devices(size, program, *args)
    for rank, (mine, theirs) in enumerate(zip(simulated, real, strict=True)):
        same(mine, theirs, f"rank {rank}", close)


def same(mine, theirs, path, close):
    """AssertionError names the way to the first difference."""
    assert type(mine) is type(theirs), f"{path}: {mine!r} is not {theirs!r}"
    if isinstance(mine, torch.Tensor):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), path
        if close and mine.is_floating_point():
            apart, largest = (x.abs().max().item() if x.numel() else 0 for x in (mine - theirs, theirs))
            assert apart <= close * largest + 1e-12, f"{path}: {apart} apart"
        else:
            assert torch.equal(mine, theirs), f"{path}: {mine} is not {theirs}"
    elif isinstance(mine, dict):
        assert list(mine) == list(theirs), path
        for key in mine:
            same(mine[key], theirs[key], f"{path}, {key}", close)
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs), path
        for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            same(one, other, f"{path}, {number}", close)
    elif close and isinstance(mine, float):
        assert abs(mine - theirs) <= close * abs(theirs), f"{path}: {mine} is not {theirs}"
    else:
        assert mine == theirs, path
