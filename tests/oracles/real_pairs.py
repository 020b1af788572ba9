"""All programs of `beside_pytorch.py` in one run. In a file of its own, which other processes can import."""

import torch.distributed as dist

from lib.examples import beside_pytorch as beside

PAIRS = dict(beside.PAIRS.values())


@beside.with_process_group
def fails(group, steps):
    """As a program that goes wrong while it has a process group."""
    assert dist.is_initialized()
    raise InterruptedError


def run_all(group, programs, steps):
    """The results by name of the program, and whether a process group is left behind, also by one that fails."""
    results = {program.__name__: program(group, steps) for program in programs}
    left_behind = dist.is_initialized()
    try:
        fails(group, steps)
    except InterruptedError:
        return results, left_behind or dist.is_initialized()
