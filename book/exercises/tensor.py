"""The exercises of the chapter "Tensor parallelism". Each function is a solution: read it after your own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.trials import Input
from book.exercises.vocabulary import cross_entropy, embed
from lib.devices import Group
from lib.devices.collectives import AllReduce
from lib.parallel.sharding.conjugates import copy_to, reduce_from
from lib.parallel.sharding.placement import Replicate, Shard

__all__ = ["cross_entropy", "embed", "mlp", "mlp_backward"]


def mlp_with_biases(x: Tensor, a: Tensor, a_bias: Tensor, b: Tensor, b_bias: Tensor) -> Tensor:
    return F.gelu(x @ a + a_bias) @ b + b_bias


@exercise(
    oracle=mlp_with_biases,
    inputs={
        "x": Input("tokens hidden"),
        "a": Input("hidden inner", Shard(1)),
        "a_bias": Input("inner", Shard(0)),
        "b": Input("inner hidden", Shard(0)),
        "b_bias": Input("hidden"),
    },
    returns={"the result": Replicate()},
    gradients=("x", "a", "a_bias", "b", "b_bias"),
    forward=(Talk(AllReduce(), "tokens hidden"),),
    backward=(Talk(AllReduce(), "tokens hidden"),),
    mistakes={
        "b_bias was added before the sum: it counts P times, once per device.": lambda parts, x, a, a_bias, b, b_bias: (
            mlp_with_biases(x, a, a_bias, b, parts * b_bias)
        ),
        "b_bias is missing.": lambda parts, x, a, a_bias, b, b_bias: mlp_with_biases(x, a, a_bias, b, 0),
        "a_bias is missing.": lambda parts, x, a, a_bias, b, b_bias: mlp_with_biases(x, a, 0, b, b_bias),
        "the GeLU is missing.": lambda parts, x, a, a_bias, b, b_bias: (x @ a + a_bias) @ b + b_bias,
    },
    refused={"b has one row more than a has columns": {"b": "inner+1 hidden"}},
    hints=(
        "Begin without the biases: x enters with copy_to, and the result leaves with reduce_from. Which bias is a "
        "piece, which is whole?",
        "a_bias is cut as the columns of a are: add it to your columns. b_bias belongs to the finished sum.",
        "What stands before reduce_from is added up over the devices, what stands behind it is not: "
        "reduce_from(y @ b, group) + b_bias.",
    ),
)
def mlp(group: Group, x: Tensor, a: Tensor, a_bias: Tensor, b: Tensor, b_bias: Tensor) -> Tensor:
    """GeLU(x a + a_bias) b + b_bias: one all-reduce forward, one backward, and all five gradients right.

    x (tokens, hidden) and b_bias (hidden,) are whole; a (hidden, inner/P), a_bias (inner/P,) and b (inner/P, hidden)
    are this device's pieces. Return the whole (tokens, hidden) on every device.
    """
    y = F.gelu(copy_to(x, group) @ a + a_bias)  # (tokens, inner/P)  Shard(1)
    return reduce_from(y @ b, group) + b_bias  # (tokens, hidden)  Partial -> Replicate


def relu_mlp_backward(x: Tensor, a: Tensor, b: Tensor, dz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h = x @ a
    dh = (dz @ b.T) * (h > 0)
    return dh @ a.T, x.T @ dh, torch.relu(h).T @ dz


@exercise(
    oracle=relu_mlp_backward,
    inputs={
        "x": Input("tokens hidden"),
        "a": Input("hidden inner", Shard(1)),
        "b": Input("inner hidden", Shard(0)),
        "dz": Input("tokens hidden"),
    },
    returns={"dx": Replicate(), "da": Shard(1), "db": Shard(0)},
    forward=(Talk(AllReduce(), "tokens hidden"),),
    mistakes={
        "the relu is missing: where x a is not above 0, no gradient comes through.": lambda parts, x, a, b, dz: (
            dz @ b.T @ a.T
        ),
        "da without the relu: where x a is not above 0, no gradient comes through.": lambda parts, x, a, b, dz: (
            x.T @ (dz @ b.T)
        ),
        "db is made of what b was multiplied by: relu(x a), not x a.": lambda parts, x, a, b, dz: (x @ a).T @ dz,
    },
    refused={"dz has one row more than x": {"dz": "tokens+1 hidden"}},
    hints=(
        "Go backward through z = y @ b, y = relu(h), h = x @ a, one line each. x @ a is at hand: x is whole, and a is "
        "your piece.",
        "dy = dz @ b.T, then dh = dy * (h > 0): your columns, finished. Two of the three gradients are products of "
        "what you hold.",
        "dx = dh @ a.T sums over the columns of a, of which you hold some: a partial sum. That is the backward of f.",
    ),
)
def mlp_backward(group: Group, x: Tensor, a: Tensor, b: Tensor, dz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The backward of z = relu(x a) b by hand, without autograd: (dx, da, db), with one verb.

    x (tokens, hidden) and dz (tokens, hidden), the gradient of z, are whole; a (hidden, inner/P) and b (inner/P,
    hidden) are this device's pieces. dx is to be whole on every device; da and db are those of the pieces.
    """
    h = x @ a  # (tokens, inner/P)  Shard(1)
    dh = (dz @ b.T) * (h > 0)  # (tokens, inner/P)  Shard(1)
    dx = group.all_reduce(dh @ a.T)  # (tokens, hidden)  Partial -> Replicate
    return dx, x.T @ dh, torch.relu(h).T @ dz
