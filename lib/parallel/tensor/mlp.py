"""Tensor parallelism: the MLP of a transformer on P devices, with one all-reduce forward and one backward.

    Y = GeLU(X A)    A by columns: each device computes some columns of X A, finished, so GeLU may act on them
    Z = Y B          B by rows: exactly the rows that the device's columns of Y need

Nothing is sent between the two products. Were A cut by rows, X A would be a sum over the devices, and GeLU of a sum is
not the sum of GeLUs: the devices would have to talk before it.

Shoeybi et al. 2019, arXiv 1909.08053, section 3.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lib.devices import Group
from lib.parallel.sharding.linear import ColumnParallelLinear, RowParallelLinear


class ParallelMLP(nn.Module):
    """One device's part of `Linear(hidden, inner) -> GeLU -> Linear(inner, hidden)`; `inner` is 4 hidden by default.

    Input and output (batch, S, hidden) Replicate.
    Communication: an all-reduce of (batch, S, hidden) forward, one backward.

    Raises ValueError when the devices do not divide `inner`.
    """

    Column, Row = ColumnParallelLinear, RowParallelLinear

    def __init__(
        self,
        hidden: int,
        group: Group,
        inner: int | None = None,
        approximate: Literal["none", "tanh"] = "none",
    ):
        super().__init__()
        inner = 4 * hidden if inner is None else inner
        if inner % group.size:
            raise ValueError(f"ParallelMLP: an inner size of {inner} cannot be split over {group.size} devices")
        self.approximate = approximate
        self.up = self.Column(hidden, inner, group)
        self.down = self.Row(inner, hidden, group)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, S, hidden) -> (batch, S, hidden)."""
        y = F.gelu(self.up(x), approximate=self.approximate)  # (batch, S, inner/P)  Shard(-1)
        return self.down(y)
