"""The exercises of the chapter "Parallel self-attention". Each function is a solution: read it after your own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.trials import Input
from book.exercises.kv import next_token, shared_heads
from lib.devices import Group
from lib.devices.collectives import AllReduce
from lib.devices.pieces import cut
from lib.parallel.sharding.conjugates import reduce_from
from lib.parallel.sharding.placement import Replicate, Shard
from lib.parallel.sharding.shards import shard

__all__ = ["fused_qkv", "heads_to_output", "next_token", "shared_heads"]


def fused_product(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    y = (x @ w.T).unflatten(1, (3, -1, 4))  # (tokens, 3, heads, 4)
    return tuple(y.permute(1, 2, 0, 3))  # 3 x (heads, tokens, 4)


def cut_as_one(group: Group, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    mine = shard(w, group, 0)
    y = (x @ mine.T).unflatten(1, (3, -1, 4))
    return tuple(y.permute(1, 2, 0, 3))


def three_of_one_piece(parts: int, x: Tensor, w: Tensor) -> Tensor:
    if len(w) % (12 * parts):
        return x[:0]
    return torch.cat([fused_product(x, piece)[0] for piece in cut(w, parts, 0)])


@exercise(
    oracle=fused_product,
    inputs={"x": Input("tokens hidden"), "w": Input("12*heads hidden")},
    returns={"q": Shard(0), "k": Shard(0), "v": Shard(0)},
    broken=cut_as_one,
    mistakes={
        "w was cut as one, across its three blocks: these queries are made of other rows.": three_of_one_piece,
    },
    refused={"w has one row more than whole heads": {"w": "12*heads+1 hidden"}},
    hints=(
        "Write down the rows of w for two heads: 4 for the queries of head 0, 4 for those of head 1, then the keys. "
        "Which rows does device 0 of 2 need?",
        "It needs a piece of each of the three blocks, and whole heads of 4 rows. With w in the shape (3, heads, 4, "
        "hidden), which dim is to be cut?",
        "blocks = w.unflatten(0, (3, -1, 4)); mine = shard(blocks, group, 1).flatten(0, 2). The rest of the program "
        "is right.",
    ),
)
def fused_qkv(group: Group, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values of this device's heads, from one fused weight: (q, k, v), nothing sent.

    x (tokens, hidden) and w (3 * heads * 4, hidden) are whole. The rows of w are [all queries | all keys | all values],
    in each those of head 0, of head 1, and so on; a head has 4. Return three tensors (heads/P, tokens, 4).
    """
    blocks = w.unflatten(0, (3, -1, 4))  # (3, heads, 4, hidden)  Replicate
    mine = shard(blocks, group, 1).flatten(0, 2)  # (3 * heads/P * 4, hidden)  Shard(1) of the blocks
    y = (x @ mine.T).unflatten(1, (3, -1, 4))  # (tokens, 3, heads/P, 4)
    return tuple(y.permute(1, 2, 0, 3))  # 3 x (heads/P, tokens, 4)  Shard(0)


def attention(q: Tensor, k: Tensor, v: Tensor, wo: Tensor) -> Tensor:
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
    later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    o = scores.masked_fill(later, -torch.inf).softmax(2) @ v
    return (o @ wo).sum(0)


def looks_ahead(parts: int, q: Tensor, k: Tensor, v: Tensor, wo: Tensor) -> Tensor:
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
    return (scores.softmax(2) @ v @ wo).sum(0)


@exercise(
    oracle=attention,
    inputs={
        "q": Input("heads tokens size", Shard(0)),
        "k": Input("heads tokens size", Shard(0)),
        "v": Input("heads tokens size", Shard(0)),
        "wo": Input("heads size hidden", Shard(0)),
    },
    returns={"the result": Replicate()},
    gradients=("q", "k", "v", "wo"),
    forward=(Talk(AllReduce(), "tokens hidden"),),
    mistakes={
        "the causal mask is missing: tokens look at later ones.": looks_ahead,
        "the scores are not divided by the root of the head size.": lambda parts, q, k, v, wo: attention(
            q * math.sqrt(q.shape[2]), k, v, wo
        ),
        "the root is of the size of several heads; the scores of a head are sums over its own size.": (
            lambda parts, q, k, v, wo: attention(q / math.sqrt(len(q)), k, v, wo)
        ),
    },
    refused={"v has one token more than k": {"v": "heads tokens+1 size"}},
    hints=(
        "Heads do not talk: write attention for your heads as on one device. The first dim goes along: q @ "
        "k.transpose(1, 2) has a (tokens, tokens) matrix of scores per head.",
        "Divide by math.sqrt(q.shape[2]); masked_fill what is above the diagonal with -inf; softmax over the last dim; "
        "times v. That is (heads/P, tokens, size), finished.",
        "o @ wo multiplies head by head: (heads/P, tokens, hidden). The sum over your heads is yours to make. The sum "
        "over the devices leaves the region: reduce_from.",
    ),
)
def heads_to_output(group: Group, q: Tensor, k: Tensor, v: Tensor, wo: Tensor) -> Tensor:
    """Causal attention of this device's heads, and the output projection: one all-reduce, and nothing backward.

    q, k, v (heads/P, tokens, size) are those of this device's heads, wo (heads/P, size, hidden) the rows of the output
    weight that belong to them. Return the whole (tokens, hidden) on every device.
    """
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])  # (heads/P, tokens, tokens)  Shard(0)
    later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    o = scores.masked_fill(later, -torch.inf).softmax(2) @ v  # (heads/P, tokens, size)  Shard(0)
    return reduce_from((o @ wo).sum(0), group)  # (tokens, hidden)  Partial -> Replicate
