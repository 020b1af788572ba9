"""The exercises of the chapter "Parallel self-attention". Each function is a solution: read it after your own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input
from lib.devices import Group
from lib.devices.collectives import AllReduce
from lib.devices.pieces import cut
from lib.parallel.sharding.conjugates import copy_to, reduce_from
from lib.parallel.sharding.placement import Replicate, Shard
from lib.parallel.sharding.shards import shard


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
    slips={
        "a head was cut through: its 4 rows belong together. Cut a dim that counts heads.": (
            lambda group, x, w: fused_product(x, torch.cat([shard(block, group, 0) for block in w.chunk(3)]))
        ),
    },
    mistakes={
        "w was cut as one, across its three blocks: these queries are made of other rows.": three_of_one_piece,
        "w is read as [query, key, value of head 0 | of head 1 | ...]; it has all queries, all keys, all values.": (
            lambda parts, x, w: fused_product(x, w.unflatten(0, (-1, 3, 4)).transpose(0, 1).flatten(0, 2))[0]
        ),
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


def own_attention(scale: Callable[[Tensor], float], mask: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The solution, with other weights: `mask(scores, later)`, of scores divided by `scale(q)`."""

    def program(group: Group, q: Tensor, k: Tensor, v: Tensor, wo: Tensor) -> Tensor:
        scores = q @ k.transpose(1, 2) / scale(q)
        later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        return reduce_from((mask(scores, later) @ v @ wo).sum(0), group)

    return program


def root_of_size(q: Tensor) -> float:
    return math.sqrt(q.shape[2])


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
    slips={
        "the mask came after the softmax: later tokens had their share already. Mask the scores, with -inf.": (
            own_attention(root_of_size, lambda scores, later: scores.softmax(2).masked_fill(later, 0))
        ),
        "0 is no mask: exp(0) is 1. Mask the scores with -inf.": own_attention(
            root_of_size, lambda scores, later: scores.masked_fill(later, 0).softmax(2)
        ),
        "each token looks at later ones: the mask is the wrong way round.": own_attention(
            root_of_size, lambda scores, later: scores.masked_fill(later.T, -torch.inf).softmax(2)
        ),
        "the softmax runs over the wrong dim: a token's weights, over the tokens it looks at, add up to 1.": (
            own_attention(root_of_size, lambda scores, later: scores.masked_fill(later, -torch.inf).softmax(1))
        ),
        "the root is of the size of several heads. A head's scores are sums over its own.": own_attention(
            lambda q: math.sqrt(len(q) * q.shape[2]),
            lambda scores, later: scores.masked_fill(later, -torch.inf).softmax(2),
        ),
        "divided by the head size itself; it is to be its root.": own_attention(
            lambda q: q.shape[2], lambda scores, later: scores.masked_fill(later, -torch.inf).softmax(2)
        ),
    },
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


def of_shared_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    sharing = len(q) // 2
    k, v = k.repeat_interleave(sharing, 0), v.repeat_interleave(sharing, 0)
    return (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(2) @ v


def own_shared(group: Group, q: Tensor, k: Tensor, v: Tensor, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    needed = (group.rank * len(q) + torch.arange(len(q))) // (len(q) * group.size // 2)
    return (q @ pick(k, needed).transpose(1, 2) / math.sqrt(q.shape[2])).softmax(2) @ pick(v, needed)


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
    slips={
        "copy_to added up the heads that each device had picked, and they differ. Let k and v in first, then pick.": (
            lambda group, q, k, v: own_shared(group, q, k, v, lambda y, needed: copy_to(y[needed], group))
        ),
    },
    mistakes={
        "head h takes k[h % 2]; but neighbors share, so it is k[h // (heads / 2)].": lambda parts, q, k, v: picked(
            q, k, v, torch.arange(len(q)) % 2
        ),
        "every device gave k[0] to the first half of its own heads. Count heads from the first device on.": (
            lambda parts, q, k, v: picked(
                q, k, v, (torch.arange(len(q)) % (len(q) // parts) // (len(q) // parts // 2)).clamp(max=1)
            )
        ),
        "the scores are not divided by the root of the head size.": lambda parts, q, k, v: of_shared_heads(
            q * math.sqrt(q.shape[2]), k, v
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


def kept(
    group: Group,
    x: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    front: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The right output, with the old cache, or with the new key and value in front of it."""
    z, longer, more = one_token(x, wq, wk, wv, wo, keys, values)
    return group.all_reduce(z), longer.roll(1, 1) if front else keys, more.roll(1, 1) if front else values


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
    slips={
        "the new key and value are in front of the cache. It is in the order of the tokens: the new one is last.": (
            partial(kept, front=True)
        ),
        "this is the cache as it was: the new key and value are not in it.": partial(kept, front=False),
    },
    mistakes={
        "the new token does not look at itself: extend keys and values first.": (
            lambda parts, x, wq, wk, wv, wo, keys, values: from_cache(x, wq, wo, keys, values)
        ),
        "the new token looks at itself only: the cache was not used.": (
            lambda parts, x, wq, wk, wv, wo, keys, values: ((wv @ x).unsqueeze(1) @ wo).sum((0, 1))
        ),
        "divided by the head size itself; it is to be its root.": lambda parts, x, wq, wk, wv, wo, keys, values: (
            one_token(x, wq / math.sqrt(wq.shape[1]), wk, wv, wo, keys, values)[0]
        ),
        "the new key and the new value are exchanged.": lambda parts, x, wq, wk, wv, wo, keys, values: one_token(
            x, wq, wv, wk, wo, keys, values
        )[0],
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
