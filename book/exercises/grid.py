"""An exercise of the chapter "A GPT on many devices": data x tensor parallelism. Read it after your own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.trials import Input
from lib.devices import Group, Mesh
from lib.devices.collectives import AllGather, AllReduce
from lib.devices.pieces import cut
from lib.devices.traffic import Traffic
from lib.parallel.sharding.placement import Replicate
from lib.parallel.sharding.shards import shard

REPLICAS = 2


@dataclass(frozen=True)
class OfReplicas(Talk):
    """A call of the devices that hold the same columns, one in each replica."""

    def traffic(self, lengths: Mapping[str, int], parts: int) -> list[Traffic]:
        """What each device moves, in rank order: replica after replica."""
        whole = torch.empty(Input(self.dims).shape(lengths), dtype=torch.float64, device="meta")
        columns = cut(whole, parts // REPLICAS, 1)
        return [self.verb.traffic([piece] * REPLICAS)[replica] for replica in range(REPLICAS) for piece in columns]

    def __str__(self) -> str:
        return f"one {self.verb.name} of the own columns of ({self.dims.replace(' ', ', ')}) in mesh.dp"


@dataclass(frozen=True)
class InReplica(Talk):
    """A call of the devices of one replica."""

    def traffic(self, lengths: Mapping[str, int], parts: int) -> list[Traffic]:
        """What each device moves, in rank order: replica after replica."""
        return super().traffic(lengths, parts // REPLICAS) * REPLICAS

    def __str__(self) -> str:
        return f"one {self.verb.name} of ({self.dims.replace(' ', ', ')}) in mesh.tp"


def gradient(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """Of the mean over the samples of `|x w - y|^2 / 2`."""
    return x.T @ (x @ w - y) / len(x)


def halves(x: Tensor, w: Tensor, y: Tensor) -> list[Tensor]:
    """The gradient of each replica's own samples."""
    pieces = zip(cut(x, REPLICAS, 0), cut(y, REPLICAS, 0), strict=True)
    return [gradient(mine, w, right) for mine, right in pieces]


def columns_added(parts: int, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """All devices' gradients added, whatever their columns; the devices that have fewer columns are left out."""
    columns = parts // REPLICAS
    pieces = cut(gradient(x, w, y), columns, 1)
    return torch.cat([sum(piece[:, : pieces[-1].shape[1]] for piece in pieces)] * columns, 1)


@exercise(
    oracle=gradient,
    inputs={"x": Input("batch in"), "w": Input("in out"), "y": Input("batch out")},
    returns={"the gradient": Replicate()},
    forward=(OfReplicas(AllReduce(), "in out"), InReplica(AllGather(1), "in out")),
    devices=(2, 4, 6),
    mistakes={
        "the replicas did not talk: this is the gradient of one replica's samples.": lambda parts, x, w, y: halves(
            x, w, y
        )[0],
        "the gradients of different columns were added: only devices with the same columns share a mean, mesh.dp.": (
            columns_added
        ),
        "a mean of means: a replica with fewer samples counts as much as the other. Add sums, divide by len(x).": (
            lambda parts, x, w, y: sum(halves(x, w, y)) / REPLICAS
        ),
        "nothing was divided by the number of samples: this is the gradient of the sum, not of the mean.": (
            lambda parts, x, w, y: gradient(x, w, y) * len(x)
        ),
    },
    refused={"y has one column more than w": {"y": "batch out+1"}},
    hints=(
        "Two cuts that know nothing of each other: the samples over mesh.dp, the columns of w over mesh.tp. Which rows "
        "of x, which rows and columns of y does a device need?",
        "g = mine.T @ (mine @ columns - wanted) is the sum over the replica's samples, for the own columns. Who has "
        "the other terms of the same sum? Only the devices that hold the same columns.",
        "mesh.dp.all_reduce(g) / len(x) is the mean's gradient for the own columns, finished. mesh.tp.all_gather joins "
        "the columns.",
    ),
)
def grid_gradient(group: Group, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """The gradient of the mean of `|x w - y|^2 / 2`, data x tensor parallel: two replicas, w cut by columns in each.

    x (batch, in), w (in, out) and y (batch, out) are whole on every device; compute with this device's part alone.
    Make the grid with Mesh(group, dp=2, tp=group.size // 2). Return the whole gradient (in, out) on every device.
    """
    mesh = Mesh(group, dp=2, tp=group.size // 2)
    mine, columns = shard(x, mesh.dp, 0), shard(w, mesh.tp, 1)  # (batch/2, in), (in, out/tp)
    wanted = shard(shard(y, mesh.dp, 0), mesh.tp, 1)  # (batch/2, out/tp)
    g = mine.T @ (mine @ columns - wanted)  # (in, out/tp)  Partial over dp, Shard(1) over tp
    return mesh.tp.all_gather(mesh.dp.all_reduce(g) / len(x), 1)  # (in, out)  Replicate
