"""More mistakes of placement, of programs on several axes at once, and of the two ends of a pipeline."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from lib import (
    ENTERED,
    Group,
    Mesh,
    Replicate,
    Shard,
    average_gradients,
    gradient_norm,
    shard,
)
from lib.examples.misplaced import CUT, MLP, TENSOR, Mistake, Program, Ways, tensor_parallel
from lib.examples.misplaced_layers import Among

# ---- a grid: texts cut over dp, weights over tp, and the gradient clipped by one norm ----


def mesh_of(group: Group) -> Mesh:
    """Two neighbors share the weights; on one device, it is alone on both axes."""
    tp = min(2, group.size)
    return Mesh(group, dp=group.size // tp, tp=tp)


def on_a_grid(mesh: Mesh, w: Mapping[str, Tensor], x: Tensor, target: Tensor, ways: Ways) -> Tensor:
    """x, target (batch/dp, S, hidden) Shard(0) over dp -> the mean over the own texts."""
    return tensor_parallel(mesh.tp, w, x, target, TENSOR.ways)


def average_and_clip(mesh: Mesh, model: nn.Module, ways: Ways) -> None:
    """Gradients become means over dp, and are scaled to a norm of at most 0.1: one factor on all devices."""
    average_gradients(model, mesh.dp)
    factor = (0.1 / ways["norm"](model, mesh)).clamp(max=1.0)
    for p in model.parameters():
        p.grad = p.grad * factor


def right_norm(model: nn.Module, mesh: Mesh) -> Tensor:
    """Every element counts once."""
    return gradient_norm(model.parameters(), mesh.tp, sharded=[model["a"], model["b"]])


def own_norm(model: nn.Module, mesh: Mesh) -> Tensor:
    """That of what the device holds."""
    return sum(p.grad.square().sum() for p in model.parameters()).sqrt()


def norm_with_copies(model: nn.Module, mesh: Mesh) -> Tensor:
    """The squares of all devices, so that copies count twice."""
    return mesh.tp.all_reduce(sum(p.grad.square().sum() for p in model.parameters())).sqrt()


def by_rank(x: Tensor, mesh: Mesh, ways: Ways) -> Tensor:
    """The texts of the rank, and not of its place along dp."""
    return x.chunk(2)[mesh.tp.rank] if mesh.tp.size > 1 else x


GRID = Program(
    on_a_grid,
    {"norm": right_norm, "texts": lambda x, mesh, ways: shard(x, mesh.dp, 0)},
    MLP,
    {name: Among(layout) for name, layout in CUT.items()},
    kinds=lambda name, among: {"dp": ENTERED, "tp": among.layout},
    given={"dp": Shard(0)},
    place=mesh_of,
    axes=lambda mesh: {"dp": mesh.dp, "tp": mesh.tp},
    own=lambda x, mesh, ways: ways["texts"](x, mesh, ways),
    after=average_and_clip,
    mean=lambda loss, mesh, ways: mesh.dp.all_reduce(loss / mesh.dp.size),
)


# ---- the two ends of a pipeline, which share a weight ----


class HandOver(Function):
    """The first stage sends, the last receives; and the gradient goes back."""

    @staticmethod
    def forward(ctx, h: Tensor, pair: Group):
        ctx.pair = pair
        if pair.rank == 0:
            pair.send(h, 1)
        return h.clone() if pair.rank == 0 else pair.recv(0)

    @staticmethod
    def backward(ctx, grad: Tensor):
        if ctx.pair.rank == 1:
            ctx.pair.send(grad, 0)
        return (ctx.pair.recv(1) if ctx.pair.rank == 0 else grad), None


def two_ends(pair: Group, w: Mapping[str, Tensor], x: Tensor, target: Tensor, ways: Ways) -> Tensor:
    """x, target (batch, S, hidden), and the same weight at both ends -> the loss, known at the last one."""
    tied, one = w["tied"], pair.size == 1
    first, last = (tied if one or pair.rank == end else tied.detach() for end in (0, 1))
    h = F.gelu(x @ first).requires_grad_()  # so that there is a way back
    y = (h if one else HandOver.apply(h, pair)) @ last.T
    return ((x + y - target) ** 2).mean()


def add_up_ends(model: nn.Module, pair: Group) -> None:
    """The weight has two gradients, one from each end."""
    model["tied"].grad = pair.all_reduce(model["tied"].grad)


ENDS = Program(
    two_ends,
    {"tie": add_up_ends},
    {"tied": (8, 8)},
    {"tied": Replicate()},
    kinds=lambda name, _: {"ends": ENTERED},
    place=lambda group: group.split(max(1, group.size // 2)),
    axes=lambda pair: {"ends": pair},
    after=lambda pair, model, ways: ways["tie"](model, pair),
    mean=lambda loss, pair, ways: pair.broadcast(loss, src=pair.size - 1),
)


def not_tied(model: nn.Module, pair: Any) -> None:
    """Each end goes its own way."""


GRID_MISTAKES = [
    Mistake("each device clips by its own norm", GRID, {"norm": own_norm}),
    Mistake("copies count twice in the norm", GRID, {"norm": norm_with_copies}),
    Mistake("texts by rank, not by dp", GRID, {"texts": by_rank}),
    Mistake("a tied weight's ends are not added up", ENDS, {"tie": not_tied}),
]
