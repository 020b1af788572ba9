"""More mistakes of placement, in other layers: an attention whose weight is cut as one piece, and experts.

The experts are two sets, each divided over two devices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import (
    ENTERED,
    ExpertGrid,
    Group,
    Placement,
    Replicate,
    RoutingRule,
    Shard,
    ShardBlocks,
    average_gradients,
    copy_to,
    reduce_from,
    shard,
)
from lib.examples.misplaced import Mistake, Program, Ways
from lib.parallel.experts.capacity import count_rows, rows_of_all
from lib.parallel.experts.dispatch import combine, dispatch, plan
from lib.parallel.experts.mlp import each_expert
from lib.parallel.experts.router import route


@dataclass(frozen=True)
class Among:
    """Cut as `layout` says over `neighbors`; the other devices hold copies."""

    layout: Placement
    neighbors: int = 2

    def piece(self, whole: Tensor, parts: int, rank: int) -> Tensor:
        """What device `rank` of `parts` holds."""
        few = min(self.neighbors, parts)
        return self.layout.piece(whole, few, rank % few)

    def whole(self, pieces: Sequence[Tensor]) -> Tensor:
        """The weight, from the pieces of all devices."""
        return self.layout.whole(pieces[: self.neighbors])


def attention(group: Group, w: Mapping[str, Tensor], x: Tensor, target: Tensor, ways: Ways) -> Tensor:
    """x, target (batch, S, hidden) Replicate -> the loss, Replicate. Four heads, of two numbers each."""
    qkv = F.linear(copy_to(x, group), w["qkv"]).chunk(3, -1)  # each (batch, S, hidden/P)  Shard(2)
    q, k, v = (y.unflatten(-1, (-1, 2)).transpose(1, 2) for y in qkv)  # (batch, heads/P, S, 2)  Shard(1)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    return ((x + reduce_from(F.linear(y, w["out"]), group) - target) ** 2).mean()


ATTENTION = Program(
    attention,
    {},
    {"qkv": (24, 8), "out": (8, 8)},
    {"qkv": ShardBlocks(3), "out": Shard(1)},
)


RULE = RoutingRule(experts=4, k=2)
DIVIDED = ("up", "down")


def with_experts(grid: ExpertGrid, w: Mapping[str, Tensor], x: Tensor, target: Tensor, ways: Ways) -> Tensor:
    """x, target (batch/P, S, hidden) Shard(0) -> this device's share of the mean of all."""
    tokens = x.flatten(0, 1)  # (n/P, hidden)
    routing = route(F.linear(tokens, w["router"]), RULE)
    counts = rows_of_all(count_rows(routing.chosen, RULE.experts), grid.batch)  # (P, 4)
    first = grid.batch.rank - grid.experts.rank
    way = plan(routing.chosen, counts[first : first + grid.experts.size], grid.experts)
    each = zip(
        dispatch(tokens, way, grid.experts).split(way.counts), each_expert(w["up"]), each_expert(w["down"]), strict=True
    )
    answers = torch.cat([F.linear(F.gelu(F.linear(rows, up)), down) for rows, up, down in each])
    z = combine(answers, way, grid.experts, routing.gates).view_as(x)
    return ((x + z - target) ** 2).mean() * ways["share"](grid.batch.size)


def summed(model: nn.Module, grid: ExpertGrid) -> None:
    """Each gradient over the devices that hold the same weight, without a factor."""
    for names, group in _families(grid):
        average_gradients(nn.ParameterDict({name: model[name] for name in names}), group, share=1.0)


def each_averaged(model: nn.Module, grid: ExpertGrid) -> None:
    """Each gradient becomes the mean over the devices that hold the same weight."""
    for names, group in _families(grid):
        average_gradients(nn.ParameterDict({name: model[name] for name in names}), group)


def _families(grid: ExpertGrid) -> list[tuple[tuple[str, ...], Group]]:
    return [(DIVIDED, grid.replicas), (("router",), grid.batch)]


EXPERTS = Program(
    with_experts,
    {"share": lambda size: 1 / size, "sum": summed},
    {"router": (4, 8), "up": (4, 16, 8), "down": (4, 8, 16)},
    {"router": Replicate()} | dict.fromkeys(DIVIDED, Among(Shard(0))),
    kinds=lambda name, _: {"replicas": ENTERED, "experts": Shard(0) if name in DIVIDED else ENTERED},
    given={"replicas": Shard(0), "experts": Shard(0)},
    place=lambda group: ExpertGrid.over(group, min(2, group.size)),
    axes=lambda grid: {"replicas": grid.replicas, "experts": grid.experts},
    own=lambda x, grid, ways: shard(x, grid.batch, 0),
    after=lambda grid, model, ways: ways["sum"](model, grid),
    mean=lambda loss, grid, ways: grid.batch.all_reduce(loss / ways["share"](grid.batch.size) / grid.batch.size),
)


LAYER_MISTAKES = [
    Mistake("the fused QKV is cut as one piece", ATTENTION, {"cut of qkv": Shard(0)}),
    Mistake("experts averaged over the wrong group", EXPERTS, {"share": lambda size: 1.0, "sum": each_averaged}),
]
