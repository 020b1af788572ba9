"""The exercises of the chapter "Sequence parallelism". Each function is a solution: read it after your own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input
from lib.devices import Group
from lib.devices.collectives import AllGather, AllReduce, ReduceScatter
from lib.devices.pieces import cut
from lib.parallel.sequence.layers import gather_linear
from lib.parallel.sharding.conjugates import (
    all_gather,
    copy_to,
    gather_from,
    reduce_from,
    reduce_scatter,
    scatter_to,
)
from lib.parallel.sharding.placement import Shard
from lib.parallel.sharding.shards import shard


def gelu_between(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.gelu(x @ a) @ b


def tensor_parallel(group: Group, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = F.gelu(copy_to(x, group) @ a)
    return reduce_from(y @ b, group)


def tokens_mixed_up(parts: int, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    pieces = zip(cut(x, parts, 0), cut(a, parts, 1), cut(b, parts, 0), strict=True)
    terms = [gelu_between(*piece) for piece in pieces]
    alike = len({len(term) for term in terms}) == 1
    return sum(terms).repeat(parts, 1) if alike else x[:0]


def entered_by(
    enter: Callable[[Tensor, Tensor, Group], Tensor], leave: Callable[..., Tensor] = reduce_scatter
) -> Callable[..., Tensor]:
    """The solution, with x @ a made by `enter` and another exit."""
    return lambda group, x, a, b: leave(F.gelu(enter(x, a, group)) @ b, group, 0)


@exercise(
    oracle=gelu_between,
    inputs={
        "x": Input("tokens hidden", Shard(0)),
        "a": Input("hidden inner", Shard(1)),
        "b": Input("inner hidden", Shard(0)),
    },
    returns={"the result": Shard(0)},
    gradients=("x", "a", "b"),
    forward=(Talk(AllGather(0), "tokens hidden"), Talk(ReduceScatter(0), "tokens hidden")),
    backward=(Talk(AllGather(0), "tokens hidden"), Talk(ReduceScatter(0), "tokens hidden")),
    broken=tensor_parallel,
    slips={
        "gather_from keeps your slice of the gradient and adds nothing up; a slice of reduce_from's sum comes to the "
        "same. But every device multiplied your tokens by its own columns, so their terms must be added: enter by "
        "all_gather, leave by reduce_scatter.": entered_by(lambda x, a, group: gather_from(x, group, 0) @ a),
        "different tokens were added to each other: each device came with its own tokens. Gather them before.": (
            entered_by(lambda x, a, group: x @ a)
        ),
        "gather_linear gathers x a second time, in the backward, so as not to keep it: memory paid with bytes. Here "
        "the bytes are limited: all_gather(x, group, 0) keeps what it gathered.": entered_by(
            lambda x, a, group: gather_linear(x, a.T, None, group, 0)
        ),
        "your slice of your own terms: the other devices' terms for your tokens were never added.": entered_by(
            lambda x, a, group: all_gather(x, group, 0) @ a, scatter_to
        ),
        "the whole sum went to everyone, who keeps its own tokens. A reduce-scatter sends half of that.": entered_by(
            lambda x, a, group: all_gather(x, group, 0) @ a,
            lambda y, group, dim: scatter_to(reduce_from(y, group), group, dim),
        ),
    },
    mistakes={
        "different tokens were added to each other: each device came with its own tokens. Gather them first.": (
            tokens_mixed_up
        ),
        "the GeLU is missing.": lambda parts, x, a, b: x @ a @ b,
    },
    refused={"b has one row more than a has columns": {"b": "inner+1 hidden"}},
    hints=(
        "Your columns of a must meet all tokens, and you hold some. Your product with b is a term for all tokens, and "
        "you want the sum for yours. Which two verbs are these?",
        "An all-gather at the entrance, a reduce-scatter at the exit, both along the tokens: dim 0. In lib.parallel "
        "each stands with its backward.",
        "all_gather(x, group, 0) in the place of copy_to(x, group); reduce_scatter(y @ b, group, 0) in the place of "
        "reduce_from. gather_from is for what is not cut afterwards: its backward adds nothing up.",
    ),
)
def sequence_mlp(group: Group, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """GeLU(x a) b, entered and left with this device's tokens: the bytes of tensor parallelism, in two halves.

    x (tokens/P, hidden) are this device's tokens; a (hidden, inner/P) and b (inner/P, hidden) its pieces. Return this
    device's tokens of the result, (tokens/P, hidden), so that the gradients of x, a and b are right as well.
    """
    x = all_gather(x, group, 0)  # (tokens, hidden)   Shard(0) -> Replicate
    y = F.gelu(x @ a)  # (tokens, inner/P)  Shard(1)
    return reduce_scatter(y @ b, group, 0)  # (tokens/P, hidden)  Partial -> Shard(0)


def normalized(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias)


def normalized_over(x: Tensor, dim: int, correction: int = 0) -> Tensor:
    variance, mean = torch.var_mean(x, dim, correction=correction, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def forgetful_norm(group: Group, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias)


@exercise(
    oracle=normalized,
    inputs={
        "x": Input("tokens hidden", Shard(0)),
        "weight": Input("hidden"),
        "bias": Input("hidden"),
    },
    returns={"the result": Shard(0)},
    gradients=("x", "weight", "bias"),
    backward=(Talk(AllReduce(), "hidden"), Talk(AllReduce(), "hidden")),
    broken=forgetful_norm,
    slips={
        "reduce_from added up the weight itself, forward. copy_to does nothing forward, and adds up gradients.": (
            lambda group, x, weight, bias: F.layer_norm(
                x, weight.shape, reduce_from(weight, group), copy_to(bias, group)
            )
        ),
        "copy_to stands behind the layer: it added up the gradients of different tokens. It belongs around what is the "
        "same on every device, weight and bias.": lambda group, x, weight, bias: copy_to(
            F.layer_norm(x, weight.shape, weight, bias), group
        ),
        "all tokens were gathered. LayerNorm takes each token alone: keep your tokens, and nothing is sent forward.": (
            lambda group, x, weight, bias: scatter_to(
                F.layer_norm(gather_from(x, group, 0), weight.shape, weight, bias), group, 0
            )
        ),
    },
    mistakes={
        "mean and variance are those of all tokens together; LayerNorm takes each token's own.": (
            lambda parts, x, weight, bias: F.layer_norm(x, x.shape) * weight + bias
        ),
        "the bias is missing.": lambda parts, x, weight, bias: F.layer_norm(x, weight.shape, weight),
        "the variance was divided by n - 1, as x.var does unless told correction=0. LayerNorm divides by n.": (
            lambda parts, x, weight, bias: normalized_over(x, 1, correction=1) * weight + bias
        ),
        "mean and variance are those of a feature, over tokens. LayerNorm takes those of a token, over features.": (
            lambda parts, x, weight, bias: (
                torch.cat([normalized_over(piece, 0) for piece in cut(x, parts, 0)]) * weight + bias
            )
        ),
        "this is RMSNorm. LayerNorm subtracts the mean of each token first.": lambda parts, x, weight, bias: (
            F.rms_norm(x, weight.shape, weight) + bias
        ),
    },
    refused={"weight has one number more than a token": {"weight": "hidden+1"}},
    hints=(
        "The check says whose gradient is wrong, and how. Every device used the same weight, on which tokens?",
        "What is replicated, and used by each device for another part of the result, gets a Partial gradient. Nothing "
        "is to be done forward. Which function does nothing forward and adds up backward?",
        "copy_to(weight, group), and the same for the bias. x is no replica: its gradient is already that of your "
        "tokens.",
    ),
)
def sequence_norm(group: Group, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm of this device's tokens, with the whole gradient of weight and bias on every device.

    x (tokens/P, hidden) are this device's tokens; weight and bias (hidden,) are the same everywhere. Return
    (tokens/P, hidden).
    """
    weight, bias = copy_to(weight, group), copy_to(bias, group)  # (hidden,)  Replicate
    return F.layer_norm(x, weight.shape, weight, bias)  # (tokens/P, hidden)  Shard(0)


def product_backward(x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return dy @ w.T, x.T @ dy


@exercise(
    oracle=product_backward,
    inputs={
        "x": Input("tokens in", Shard(0)),
        "w": Input("in out", Shard(1)),
        "dy": Input("tokens out", Shard(1)),
    },
    returns={"dx": Shard(0), "dw": Shard(1)},
    slips={
        "dw is made of this device's own tokens alone. Every token meets your columns: gather x again.": (
            lambda group, x, w, dy: (group.reduce_scatter(dy @ w.T, 0), x.T @ shard(dy, group, 0))
        ),
        "own tokens alone for dw, then a sum over devices: those have other columns. Gather x again.": (
            lambda group, x, w, dy: (group.reduce_scatter(dy @ w.T, 0), group.all_reduce(x.T @ shard(dy, group, 0)))
        ),
        "dx is your slice of your own terms: the other devices' columns have terms for your tokens, too.": (
            lambda group, x, w, dy: (shard(dy @ w.T, group, 0), group.all_gather(x, 0).T @ dy)
        ),
        "an all-reduce gave everyone the dx of all tokens. You keep your own: a reduce-scatter sends half of that.": (
            lambda group, x, w, dy: (shard(group.all_reduce(dy @ w.T), group, 0), group.all_gather(x, 0).T @ dy)
        ),
    },
    forward=(Talk(AllGather(0), "tokens in"), Talk(ReduceScatter(0), "tokens in")),
    refused={"dy has one row more than there are tokens": {"dy": "tokens+1 out"}},
    hints=(
        "On one device dx = dy @ w.T and dw = x.T @ dy. Write the shapes of your pieces under each: which product can "
        "you make, and which one cannot be made?",
        "dw needs all tokens of x, and the forward kept yours alone: gather them again, along dim 0. dx needs nothing "
        "from anyone, but it is a partial sum, for all tokens.",
        "You want the finished dx of your tokens only: group.reduce_scatter(dy @ w.T, 0). An all-reduce would send "
        "twice as much, and you would throw most of it away.",
    ),
)
def gather_again(group: Group, x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The backward of y = all_gather(x) @ w by hand, when only this device's tokens of x were kept: (dx, dw).

    x (tokens/P, in) are this device's tokens; w (in, out/P) and dy (tokens, out/P), the gradient of y, its columns.
    Return dx (tokens/P, in), for this device's tokens, and dw (in, out/P), for its columns: two products, two verbs.
    """
    whole = group.all_gather(x, 0)  # (tokens, in)  Shard(0) -> Replicate
    dx = group.reduce_scatter(dy @ w.T, 0)  # (tokens/P, in)  Partial -> Shard(0)
    return dx, whole.T @ dy  # (in, out/P)  Shard(1)
