"""Mistakes of placement, one switch each: who finds them? Shapes, the loss curve, comparing with one device, or types.

One small layer, x + MLP(LayerNorm(x)), is trained in three ways: by tensor parallelism, with sequence parallelism, and
by data parallelism. Every way is a program with named steps, and a mistake is another function for one of the steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from lib import Group, Replicate, Shard, all_gather, copy_to, gather_from, reduce_from, reduce_scatter, scatter_to

CUT = {"weight": Replicate(), "a": Shard(1), "b": Shard(0), "bias": Replicate()}
Ways = Mapping[str, Callable]


def weights() -> dict[str, Tensor]:
    """The dense weights: LayerNorm's, the two matrices of the MLP, and the last bias."""
    torch.manual_seed(0)
    shapes = {"weight": (8,), "a": (8, 16), "b": (16, 8), "bias": (8,)}
    return {name: torch.randn(shape, dtype=torch.float64) / 3 for name, shape in shapes.items()}


def texts() -> tuple[Tensor, Tensor]:
    """x and target, (batch, S, hidden) = (4, 8, 8)."""
    torch.manual_seed(1)
    return torch.randn(4, 8, 8, dtype=torch.float64), torch.randn(4, 8, 8, dtype=torch.float64)


def tensor_parallel(group: Group, w: Mapping[str, Tensor], x: Tensor, target: Tensor, ways: Ways) -> Tensor:
    """x, target (batch, S, hidden) Replicate -> the loss, Replicate."""
    h = ways["enter"](F.layer_norm(x, (8,), w["weight"]), group)  # f
    y = ways["activate"](h @ w["a"], group)  # (batch, S, 16/P)  Shard(2)
    z = ways["leave"](y @ w["b"], w["bias"], group)  # Partial -> Replicate: g, and then the bias
    return ways["end"](((x + z - target) ** 2).mean(), group)


def sequence_parallel(group: Group, w: Mapping[str, Tensor], x: Tensor, target: Tensor, ways: Ways) -> Tensor:
    """x, target (batch, S/P, hidden) Shard(1) -> the loss, Replicate."""
    weight, bias = ways["weight"](w["weight"], group), ways["bias"](w["bias"], group)
    h = ways["gather"](F.layer_norm(x, (8,), weight), group, 1)  # (batch, S, hidden)
    z = ways["scatter"](F.gelu(h @ w["a"]) @ w["b"], group, 1) + bias  # (batch, S/P, hidden)  Shard(1)
    return reduce_from(((x + z - target) ** 2).sum() / 256, group)  # 4 x 8 x 8 elements in all


def data_parallel(group: Group, w: Mapping[str, Tensor], x: Tensor, target: Tensor, ways: Ways) -> Tensor:
    """x, target (batch/P, S, hidden) Shard(0) -> the mean over the own texts."""
    z = F.gelu(F.layer_norm(x, (8,), w["weight"]) @ w["a"]) @ w["b"] + w["bias"]
    return ways["loss"](((x + z - target) ** 2).mean(), group)


PROGRAMS: dict[Callable, tuple[dict[str, Callable], int | None]] = {  # the right steps, and the dim of x that is cut
    tensor_parallel: (
        {
            "enter": copy_to,
            "activate": lambda y, group: F.gelu(y),
            "leave": lambda y, bias, group: reduce_from(y, group) + bias,
            "end": lambda loss, group: loss,
        },
        None,
    ),
    sequence_parallel: ({"weight": copy_to, "bias": copy_to, "gather": all_gather, "scatter": reduce_scatter}, 1),
    data_parallel: ({"loss": lambda loss, group: loss, "share": lambda size: 1 / size}, 0),
}


class ReduceTwice(Function):
    """g with an all-reduce in its backward too."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return group.all_reduce(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.group.all_reduce(grad), None


@dataclass(frozen=True)
class Mistake:
    """One wrong step of a program."""

    name: str
    program: Callable
    wrong: Mapping[str, Callable]


MISTAKES = [
    Mistake("f is missing", tensor_parallel, {"enter": lambda x, group: x}),
    Mistake("a second f", tensor_parallel, {"enter": lambda x, group: copy_to(copy_to(x, group), group)}),
    Mistake("g is missing", tensor_parallel, {"leave": lambda y, bias, group: y + bias}),
    Mistake(
        "a second g",
        tensor_parallel,
        {"leave": lambda y, bias, group: reduce_from(reduce_from(y, group), group) + bias},
    ),
    Mistake(
        "g all-reduces in its backward too",
        tensor_parallel,
        {"leave": lambda y, bias, group: ReduceTwice.apply(y, group) + bias},
    ),
    Mistake("the bias before the sum", tensor_parallel, {"leave": lambda y, bias, group: reduce_from(y + bias, group)}),
    Mistake(
        "the bias on rank 0 alone",
        tensor_parallel,
        {"leave": lambda y, bias, group: reduce_from(y + bias * (group.rank == 0), group)},
    ),
    Mistake(
        "bias / P before the sum",
        tensor_parallel,
        {"leave": lambda y, bias, group: reduce_from(y + bias / group.size, group)},
    ),
    Mistake(
        "GeLU of a partial sum",
        tensor_parallel,
        {"leave": lambda y, bias, group: reduce_from(F.gelu(y), group) + bias},
    ),
    Mistake("the whole loss is summed again", tensor_parallel, {"end": reduce_from}),
    Mistake("LayerNorm's gradient is not reduced", sequence_parallel, {"weight": lambda p, group: p}),
    Mistake("the bias' gradient is not reduced", sequence_parallel, {"bias": lambda p, group: p}),
    Mistake("gather_from for all_gather", sequence_parallel, {"gather": gather_from}),
    Mistake("scatter_to for reduce_scatter", sequence_parallel, {"scatter": scatter_to}),
    Mistake("the loss is divided by P twice", data_parallel, {"loss": lambda loss, group: loss / group.size}),
    Mistake("the gradients are not averaged", data_parallel, {"share": lambda size: None}),
    Mistake("the gradients are summed, not averaged", data_parallel, {"share": lambda size: 1.0}),
]
