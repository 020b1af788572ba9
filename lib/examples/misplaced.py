"""Mistakes of placement, one switch each: who finds them? Shapes, the loss curve, comparing with one device, or types.

One small layer, x + MLP(LayerNorm(x)), is trained in three ways: by tensor parallelism, with sequence parallelism, and
by data parallelism. Every way is a program with named steps, and a mistake is another
function for one of the steps. More programs are in `misplaced_layers.py` (attention, experts)
and `misplaced_on_grids.py` (several axes, the two ends of a pipeline).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from lib import (
    ENTERED,
    Group,
    Kind,
    Placement,
    Replicate,
    Shard,
    all_gather,
    average_gradients,
    copy_to,
    gather_from,
    reduce_from,
    reduce_scatter,
    scatter_to,
    shard,
)

Ways = Mapping[str, Any]
MLP = {"weight": (8,), "a": (8, 16), "b": (16, 8), "bias": (8,)}  # LayerNorm's, the two matrices, and the last bias
CUT = {"weight": Replicate(), "a": Shard(1), "b": Shard(0), "bias": Replicate()}


@dataclass(frozen=True, eq=False)
class Program:
    """A program of a layer: `run(at, w, x, target, ways)` makes the loss, and `after(at, model, ways)` what follows the
    backward. `at` are the groups of this device, made by `place`, and `axes` their names for the types.

    `shapes` are those of the dense weights, and `cut` says how they are cut; `kinds` and `given` say of what kinds the
    weights and the texts are, over each axis. `own` takes this device's part of the texts, and `mean` makes of this
    device's loss that of all.
    """

    run: Callable[[Any, Mapping[str, Tensor], Tensor, Tensor, Ways], Tensor]
    ways: Ways
    shapes: Mapping[str, tuple[int, ...]]
    cut: Mapping[str, Placement]
    kinds: Callable[[str, Placement], Mapping[str, Placement | Kind]] = lambda name, layout: {"group": layout}
    given: Mapping[str, Placement] = field(default_factory=dict)
    place: Callable[[Group], Any] = lambda group: group
    axes: Callable[[Any], Mapping[str, Group]] = lambda at: {"group": at}
    own: Callable[[Tensor, Any, Ways], Tensor] = lambda x, at, ways: x
    after: Callable[[Any, nn.Module, Ways], None] = lambda at, model, ways: None
    mean: Callable[[Tensor, Any, Ways], Tensor] = lambda loss, at, ways: loss

    def weights(self) -> dict[str, Tensor]:
        """The dense weights."""
        torch.manual_seed(0)
        return {name: torch.randn(shape, dtype=torch.float64) / 3 for name, shape in self.shapes.items()}

    def layouts(self, wrong: Ways) -> dict[str, Placement]:
        """How each weight is cut, and where the mistake is that it is cut otherwise."""
        return {name: wrong.get(f"cut of {name}", layout) for name, layout in self.cut.items()}


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


TENSOR = Program(
    tensor_parallel,
    {
        "enter": copy_to,
        "activate": lambda y, group: F.gelu(y),
        "leave": lambda y, bias, group: reduce_from(y, group) + bias,
        "end": lambda loss, group: loss,
    },
    MLP,
    CUT,
)
SEQUENCE = Program(
    sequence_parallel,
    {"weight": copy_to, "bias": copy_to, "gather": all_gather, "scatter": reduce_scatter},
    MLP,
    CUT,
    given={"group": Shard(1)},
    own=lambda x, group, ways: shard(x, group, 1),
)
DATA = Program(
    data_parallel,
    {"loss": lambda loss, group: loss, "average": lambda model, group: average_gradients(model, group)},
    MLP,
    dict.fromkeys(CUT, Replicate()),
    kinds=lambda name, layout: {"group": ENTERED},
    given={"group": Shard(0)},
    own=lambda x, group, ways: shard(x, group, 0),
    after=lambda group, model, ways: ways["average"](model, group),
    mean=lambda loss, group, ways: group.all_reduce(loss / group.size),
)


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
    program: Program
    wrong: Ways


MISTAKES = [
    Mistake("f is missing", TENSOR, {"enter": lambda x, group: x}),
    Mistake("a second f", TENSOR, {"enter": lambda x, group: copy_to(copy_to(x, group), group)}),
    Mistake("g is missing", TENSOR, {"leave": lambda y, bias, group: y + bias}),
    Mistake(
        "a second g",
        TENSOR,
        {"leave": lambda y, bias, group: reduce_from(reduce_from(y, group), group) + bias},
    ),
    Mistake(
        "g all-reduces in its backward too",
        TENSOR,
        {"leave": lambda y, bias, group: ReduceTwice.apply(y, group) + bias},
    ),
    Mistake("the bias before the sum", TENSOR, {"leave": lambda y, bias, group: reduce_from(y + bias, group)}),
    Mistake(
        "the bias on rank 0 alone",
        TENSOR,
        {"leave": lambda y, bias, group: reduce_from(y + bias * (group.rank == 0), group)},
    ),
    Mistake(
        "bias / P before the sum",
        TENSOR,
        {"leave": lambda y, bias, group: reduce_from(y + bias / group.size, group)},
    ),
    Mistake(
        "GeLU of a partial sum",
        TENSOR,
        {"leave": lambda y, bias, group: reduce_from(F.gelu(y), group) + bias},
    ),
    Mistake("the whole loss is summed again", TENSOR, {"end": reduce_from}),
    Mistake("LayerNorm's gradient is not reduced", SEQUENCE, {"weight": lambda p, group: p}),
    Mistake("the bias' gradient is not reduced", SEQUENCE, {"bias": lambda p, group: p}),
    Mistake("gather_from for all_gather", SEQUENCE, {"gather": gather_from}),
    Mistake("scatter_to for reduce_scatter", SEQUENCE, {"scatter": scatter_to}),
    Mistake("the loss is divided by P twice", DATA, {"loss": lambda loss, group: loss / group.size}),
    Mistake("the gradients are not averaged", DATA, {"average": lambda model, group: None}),
    Mistake(
        "the gradients are summed, not averaged",
        DATA,
        {"average": lambda model, group: average_gradients(model, group, share=1.0)},
    ),
]
