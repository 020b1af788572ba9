"""Dropout on many devices: which random numbers must be the same, and which must not."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from lib.devices import Group, different_random


class ParallelDropout(nn.Module):
    """Dropout of an activation that is replicated over the group, or (`sharded`) of which each device holds a piece.

    Replicated: all devices drop the same elements, since their random streams stand at the same place. Otherwise the
    replicas would no longer be equal. Sharded: each device draws numbers of its own. Otherwise the same pattern
    would repeat in every piece. In both cases one byte per element is kept for the backward.
    """

    def __init__(self, p: float, group: Group, sharded: bool):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"ParallelDropout(p={p}): the share of elements to drop must be in [0, 1)")
        self.p, self.group, self.sharded = p, group, sharded

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape and placement; unchanged in eval mode and for p = 0."""
        if not self.training or self.p == 0:
            return x
        with self.random():
            return torch.native_dropout(x, self.p, True)[0]  # F.dropout would keep its mask in x's type on a CPU

    def random(self) -> AbstractContextManager[None]:
        """Inside, random numbers are drawn from the right stream: each device's own, or the one that all share."""
        return different_random(self.group) if self.sharded else nullcontext()

    def extra_repr(self) -> str:
        return f"p={self.p}, {'sharded' if self.sharded else 'replicated'}"
