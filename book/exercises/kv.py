"""The exercises on keys and values, shared by heads and kept for generation. Each function is a solution."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.trials import Input
from lib.devices import Group
from lib.devices.collectives import AllReduce
from lib.parallel.sharding.conjugates import copy_to
from lib.parallel.sharding.placement import Replicate, Shard


def of_shared_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    sharing = len(q) // 2
    k, v = k.repeat_interleave(sharing, 0), v.repeat_interleave(sharing, 0)
    return (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(2) @ v


def picked(q: Tensor, k: Tensor, v: Tensor, heads: Tensor) -> Tensor:
    return (q @ k[heads].transpose(1, 2) / math.sqrt(q.shape[2])).softmax(2) @ v[heads]


@exercise(
    oracle=of_shared_heads,
    inputs={
        "q": Input("4*groups tokens size", Shard(0)),
        "k": Input("2 tokens size"),
        "v": Input("2 tokens size"),
    },
    returns={"the output of the heads": Shard(0)},
    gradients=("q", "k", "v"),
    backward=(Talk(AllReduce(), "2 tokens size"), Talk(AllReduce(), "2 tokens size")),
    devices=(1, 2, 4),
    mistakes={
        "head h takes k[h % 2]; but neighbors share, so it is k[h // (heads / 2)].": lambda parts, q, k, v: picked(
            q, k, v, torch.arange(len(q)) % 2
        ),
        "every device gave k[0] to the first half of its own heads. Count heads from the first device on.": (
            lambda parts, q, k, v: picked(
                q, k, v, (torch.arange(len(q)) % (len(q) // parts) // (len(q) // parts // 2)).clamp(max=1)
            )
        ),
        "there is no mask in this exercise: every token looks at all.": lambda parts, q, k, v: (
            F.scaled_dot_product_attention(q, *(y.repeat_interleave(len(q) // 2, 0) for y in (k, v)), is_causal=True)
        ),
        "all heads took k[0].": lambda parts, q, k, v: picked(q, k, v, torch.zeros(len(q), dtype=torch.long)),
        "the device took k[rank % 2]; but neighbors share, so it is k[rank // 2] on 4 devices.": (
            lambda parts, q, k, v: picked(q, k, v, torch.arange(len(q)) // (len(q) // parts) % 2)
        ),
    },
    refused={"v has one token more than k": {"v": "2 tokens+1 size"}},
    hints=(
        "Number the heads over all devices: the own ones begin at rank * len(q), and there are group.size * len(q). "
        "The first half of all shares k[0] and v[0].",
        "needed = (rank * len(q) + torch.arange(len(q))) // (heads / 2), in integers: 0 or 1 for each own head. "
        "k[needed] is as long as q.",
        "Every device uses k[0] or k[1] for other heads, and sees another part of their gradients. k and v are "
        "replicated, and enter a sharded region: copy_to.",
    ),
)
def shared_heads(group: Group, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of this device's heads (no mask), all of which share two heads of keys and values. No talk forward.

    q (heads/P, tokens, size) are the queries of this device's heads; heads is a multiple of 4. k and v (2, tokens,
    size) are whole: the first half of all heads uses k[0] and v[0], the second half k[1] and v[1]. Return (heads/P,
    tokens, size), on 1, 2 and 4 devices, so that the gradients of q, k and v are right as well.
    """
    k, v = copy_to(k, group), copy_to(v, group)  # (2, tokens, size)  Replicate
    sharing = len(q) * group.size // 2
    needed = (group.rank * len(q) + torch.arange(len(q))) // sharing  # (heads/P,)  Shard(0)
    scores = q @ k[needed].transpose(1, 2) / math.sqrt(q.shape[2])  # (heads/P, tokens, tokens)  Shard(0)
    return scores.softmax(2) @ v[needed]  # (heads/P, tokens, size)  Shard(0)


def one_token(
    x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = wq @ x, wk @ x, wv @ x
    keys, values = torch.cat([keys, k.unsqueeze(1)], 1), torch.cat([values, v.unsqueeze(1)], 1)
    scores = q.unsqueeze(1) @ keys.transpose(1, 2) / math.sqrt(q.shape[1])
    return (scores.softmax(2) @ values @ wo).sum((0, 1)), keys, values


def from_cache(x: Tensor, wq: Tensor, wo: Tensor, keys: Tensor, values: Tensor, scale: float = 1) -> Tensor:
    scores = (wq @ x).unsqueeze(1) @ keys.transpose(1, 2) / math.sqrt(wq.shape[1]) * scale
    return (scores.softmax(2) @ values @ wo).sum((0, 1))


@exercise(
    oracle=one_token,
    inputs={
        "x": Input("hidden"),
        "wq": Input("heads size hidden", Shard(0)),
        "wk": Input("heads size hidden", Shard(0)),
        "wv": Input("heads size hidden", Shard(0)),
        "wo": Input("heads size hidden", Shard(0)),
        "keys": Input("heads seen size", Shard(0)),
        "values": Input("heads seen size", Shard(0)),
    },
    returns={"the output": Replicate(), "the keys": Shard(0), "the values": Shard(0)},
    forward=(Talk(AllReduce(), "hidden"),),
    mistakes={
        "the new token does not look at itself: extend keys and values first.": (
            lambda parts, x, wq, wk, wv, wo, keys, values: from_cache(x, wq, wo, keys, values)
        ),
        "the new token looks at itself only: the cache was not used.": (
            lambda parts, x, wq, wk, wv, wo, keys, values: ((wv @ x).unsqueeze(1) @ wo).sum((0, 1))
        ),
        "the mask of a whole text was put on one row: the new token, which is the last, sees the first one only.": (
            lambda parts, x, wq, wk, wv, wo, keys, values: (values[:, :1] @ wo).sum((0, 1))
        ),
        "the scores are not divided by the root of the head size.": (
            lambda parts, x, wq, wk, wv, wo, keys, values: one_token(
                x, wq * math.sqrt(wq.shape[1]), wk, wv, wo, keys, values
            )[0]
        ),
    },
    refused={"keys has one head more than queries": {"keys": "heads+1 seen size"}},
    hints=(
        "wq @ x is (heads/P, size): the query of the new token, for your heads. The same for its key and its value. "
        "Which of the three must be remembered?",
        "torch.cat([keys, k.unsqueeze(1)], 1), and the same for the values: new tensors. The new token is the last, "
        "so it may look at all of them: no mask.",
        "scores = q.unsqueeze(1) @ keys.transpose(1, 2) / sqrt(size), softmax, @ values, @ wo, and a sum over your "
        "heads. What is still missing are the heads of the others: one verb, on (hidden,).",
    ),
)
def next_token(
    group: Group, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of generation: the output for a new token, and this device's cache with one position more.

    x (hidden,) is the new token, whole; wq, wk, wv and wo (heads/P, size, hidden) are the weights of this device's
    heads, and keys and values (heads/P, seen, size) its cache. Return the whole output (hidden,), keys and values.
    """
    q, k, v = wq @ x, wk @ x, wv @ x  # (heads/P, size)  Shard(0)
    keys = torch.cat([keys, k.unsqueeze(1)], 1)  # (heads/P, seen+1, size)  Shard(0)
    values = torch.cat([values, v.unsqueeze(1)], 1)  # (heads/P, seen+1, size)  Shard(0)
    scores = q.unsqueeze(1) @ keys.transpose(1, 2) / math.sqrt(q.shape[1])  # (heads/P, 1, seen+1)  Shard(0)
    z = (scores.softmax(2) @ values @ wo).sum((0, 1))  # (hidden,)  Partial
    return group.all_reduce(z), keys, values
