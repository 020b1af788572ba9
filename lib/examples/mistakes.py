"""Programs that go wrong on one device, to see what the others say."""

import os
import signal

import torch
from torch import Tensor

from lib.devices import Group


def raises_an_error(group: Group) -> Tensor:
    """Rank 1 multiplies what does not fit."""
    x = torch.ones(3, 3 + (group.rank == 1))
    return group.all_reduce(x @ torch.ones(3, 2))


def dies(group: Group) -> Tensor:
    """The operating system ends rank 1, as it does when memory runs out."""
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return group.all_reduce(torch.ones(3))


def calls_another_verb(group: Group) -> Tensor:
    """Rank 1 takes another branch."""
    x = torch.ones(4)
    if group.rank == 1:
        return group.all_gather(x)
    return group.all_reduce(x)


def waits_for_ever(group: Group) -> Tensor:
    """Everyone receives first, nobody sends."""
    x = group.recv((group.rank + 1) % group.size)
    group.send(x, (group.rank - 1) % group.size)
    return x
