"""Programs whose timeline is known. In a file of their own, which other processes can import."""

import time

import torch

from lib import ColumnParallelLinear


def one_sleeps(group, seconds):
    """The last device comes late, and goes on alone."""
    if group.rank == group.size - 1:
        time.sleep(seconds)
    group.all_reduce(torch.ones(3))
    if group.rank == 0:
        time.sleep(seconds)


def draws_and_holds_its_group(group):
    """Returns what it drew, and a layer that holds the group."""
    drawn = torch.rand(3)
    layer = ColumnParallelLinear(4, 8, group)
    return drawn, group.all_reduce(drawn), layer
