"""The exercises of the chapter "A Llama on many devices". Each function is a solution: read it after your own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from book.exercises.check.cost import Talk
from book.exercises.check.counting import counting
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input
from book.exercises.sharding import EXCHANGED
from lib.devices import Cluster, Group
from lib.devices.collectives import AllReduce
from lib.devices.pieces import cut
from lib.parallel.attention.cache import KVCache
from lib.parallel.llama.config import LlamaConfig
from lib.parallel.llama.model import Llama
from lib.parallel.sharding.conjugates import copy_to, reduce_from
from lib.parallel.sharding.placement import Replicate, Shard
from lib.parallel.sharding.shards import shard


def turned(x: Tensor, positions: Tensor, direction: int = 1, base: float = 100.0) -> Tensor:
    planes = x.shape[1] // 2
    angles = positions[:, None] / base ** (torch.arange(planes, dtype=x.dtype) / planes)
    a, b = x.chunk(2, 1)
    cos, sin = angles.cos(), angles.sin() * direction
    return torch.cat([a * cos - b * sin, a * sin + b * cos], 1)


def turned_in_order(x: Tensor) -> Tensor:
    return turned(x, torch.arange(len(x)))


def side_by_side(x: Tensor) -> Tensor:
    """The two coordinates of a plane as neighbors, as Meta's own files have them."""
    y = turned_in_order(torch.cat([x[:, 0::2], x[:, 1::2]], 1))
    return torch.stack(y.chunk(2, 1), 2).flatten(1)


def counted_by_own_length(group: Group, own: Tensor) -> Tensor:
    return turned(own, group.rank * len(own) + torch.arange(len(own)))


@exercise(
    oracle=turned_in_order,
    inputs={"x": Input("tokens 2*planes")},
    returns={"your tokens, turned": Shard(0)},
    slips={
        "every device counted its own tokens from 0. Position 0 is the first of the whole text.": (
            lambda group, x: turned_in_order(shard(x, group, 0))
        ),
        "the positions begin at rank times the length of your own piece; pieces may differ in length.": (
            lambda group, x: counted_by_own_length(group, shard(x, group, 0))
        ),
    },
    mistakes={
        "positions are counted from 1; the first token is at 0, and is not turned.": (
            lambda parts, x: turned(x, 1 + torch.arange(len(x)))
        ),
        "all is turned the other way round: look at the signs.": (
            lambda parts, x: turned(x, torch.arange(len(x)), direction=-1)
        ),
        "the base is 100, and the exponent i / planes: with 10,000, or 2 i / planes, the planes turn too slowly.": (
            lambda parts, x: turned(x, torch.arange(len(x)), base=1e4)
        ),
        "plane i turns by the position DIVIDED by 100^(i / planes): later planes turn more slowly, not faster.": (
            lambda parts, x: turned(x, torch.arange(len(x)), base=0.01)
        ),
        "the coordinates of a plane were taken as neighbors. Plane i has the numbers i and i + planes.": (
            lambda parts, x: side_by_side(x)
        ),
    },
    hints=(
        "A token is turned by its place in the whole text. Cut the tokens: which places do yours have?",
        "Places are cut as tokens are: shard(torch.arange(len(x)), group, 0), whatever the lengths.",
        "angles = places[:, None] / 100 ** (torch.arange(planes, dtype=x.dtype) / planes); a, b = mine.chunk(2, 1); "
        "the new numbers are a cos - b sin and a sin + b cos, side by side.",
    ),
)  # fmt: skip
def rotate_own(group: Group, x: Tensor) -> Tensor:
    """Your tokens of x, turned by their positions in the whole text. Nothing is sent.

    x (tokens, 2 planes) is whole. Plane i has the coordinates a = x[:, i] and b = x[:, i + planes]. At position p it is
    turned by p / 100^(i / planes): a cos - b sin, and a sin + b cos. Return (tokens/P, 2 planes).
    """
    mine = shard(x, group, 0)  # (tokens/P, 2 planes)  Shard(0)
    places = shard(torch.arange(len(x)), group, 0)  # (tokens/P,)  Shard(0)
    planes = x.shape[1] // 2
    steps = torch.arange(planes, dtype=x.dtype) / planes  # (planes,)  in float64, as x
    angles = places[:, None] / 100**steps  # (tokens/P, planes)
    a, b = mine.chunk(2, 1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], 1)


def gated(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (x @ gate_up.T).chunk(2, 1)
    return (F.silu(gate) * up) @ down.T


def own_gated(
    pick: Callable[[Tensor, Group], Tensor],
    into: Callable[[Tensor, Group], Tensor] = copy_to,
    out: Callable[[Tensor, Group], Tensor] = reduce_from,
) -> Callable[..., Tensor]:
    """The solution with another piece of the fused weight, another entry or another exit."""

    def program(group: Group, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = (into(x, group) @ pick(gate_up, group).T).chunk(2, 1)
        return out((F.silu(gate) * up) @ shard(down, group, 1).T, group)

    return program


def own_of_both(gate_up: Tensor, group: Group) -> Tensor:
    return torch.cat([shard(block, group, 0) for block in gate_up.chunk(2)])


def cut_as_one(parts: int, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    if len(gate_up) % (2 * parts):
        return x[:0]
    pairs = zip(cut(gate_up, parts, 0), cut(down, parts, 1), strict=True)
    return sum(gated(x, w, d) for w, d in pairs)


@exercise(
    oracle=gated,
    inputs={"x": Input("tokens hidden"), "gate_up": Input("2*inner hidden"), "down": Input("hidden inner")},
    returns={"the result": Replicate()},
    gradients=("x",),
    forward=(Talk(AllReduce(), "tokens hidden"),),
    backward=(Talk(AllReduce(), "tokens hidden"),),
    slips={
        "x went into the sharded region without copy_to: each device has a part of its gradient only.": own_gated(
            own_of_both, lambda x, group: x
        ),
        EXCHANGED: own_gated(own_of_both, reduce_from, copy_to),
    },
    mistakes={
        "gate_up was cut as one. Its first half are all gates, so the first devices had nothing else.": cut_as_one,
        "SiLU is for the gate, the first half; it was applied to the second.": (
            lambda parts, x, gate_up, down: gated(x, gate_up.roll(len(gate_up) // 2, 0), down)
        ),
        "SiLU is gate * sigmoid(gate); this is the sigmoid alone.": lambda parts, x, gate_up, down: (
            ((x @ gate_up.T).chunk(2, 1)[0].sigmoid() * (x @ gate_up.T).chunk(2, 1)[1]) @ down.T
        ),
        "this is GeLU; SiLU was asked for.": lambda parts, x, gate_up, down: (
            (F.gelu((x @ gate_up.T).chunk(2, 1)[0]) * (x @ gate_up.T).chunk(2, 1)[1]) @ down.T
        ),
        "gate and up were added: the gate is multiplied.": lambda parts, x, gate_up, down: (
            (F.silu((x @ gate_up.T).chunk(2, 1)[0]) + (x @ gate_up.T).chunk(2, 1)[1]) @ down.T
        ),
        "there is no SiLU.": lambda parts, x, gate_up, down: (
            ((x @ gate_up.T).chunk(2, 1)[0] * (x @ gate_up.T).chunk(2, 1)[1]) @ down.T
        ),
        "SiLU was applied to the product; it is for the gate alone.": lambda parts, x, gate_up, down: (
            F.silu((x @ gate_up.T).chunk(2, 1)[0] * (x @ gate_up.T).chunk(2, 1)[1]) @ down.T
        ),
    },
    refused={"down has one column more than there are gates": {"down": "hidden inner+1"}},
    hints=(
        "Number i of the product needs gate i and up i. Which rows of gate_up must your device have, so that it can "
        "make its numbers alone?",
        "torch.cat([shard(block, group, 0) for block in gate_up.chunk(2)]): your rows of each half. Then chunk(2, 1) "
        "of the product gives your gates and your ups.",
        "x enters by copy_to, once for both. F.silu(gate) * up is finished. Of down, take the columns of your numbers, "
        "shard(down, group, 1), and leave by reduce_from.",
    ),
)  # fmt: skip
def gated_mlp(group: Group, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The gated MLP with one all-reduce forward and one backward: (silu(gate) * up) @ down.T, whole on every device.

    x (tokens, hidden), gate_up (2 inner, hidden), which is [gate | up], and down (hidden, inner) are whole. Use your
    part of both weights only. The gradient of x must be right.
    """
    mine = torch.cat([shard(block, group, 0) for block in gate_up.chunk(2)])  # (2 inner/P, hidden)
    gate, up = (copy_to(x, group) @ mine.T).chunk(2, 1)  # (tokens, inner/P) each  Shard(1)
    return reduce_from((F.silu(gate) * up) @ shard(down, group, 1).T, group)  # (tokens, hidden)  Replicate


def shared_scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.T


@exercise(
    oracle=shared_scores,
    inputs={"q": Input("heads tokens 4"), "k": Input("tokens 4")},
    returns={"the scores of your heads": Shard(0)},
    gradients=("k",),
    backward=(Talk(AllReduce(), "tokens 4"),),
    slips={
        "each device has the gradient of k from its own heads only: what all of them use enters by copy_to.": (
            lambda group, q, k: shard(q, group, 0) @ k.T
        ),
        "the gradient of k was added up twice, so it is too large by the number of devices. Once is enough.": (
            lambda group, q, k: shard(q, group, 0) @ copy_to(copy_to(k, group), group).T
        ),
        "copy_to stands around the scores, and adds up the gradients of different heads. It belongs around k.": (
            lambda group, q, k: copy_to(shard(q, group, 0) @ k.T, group)
        ),
    },
    mistakes={
        "the scores are divided, by the root of 4 perhaps; here they are the plain products.": (
            lambda parts, q, k: shared_scores(q, k) / 2
        ),
    },
    hints=(
        "Every device has a copy of the keys, and uses it for its own queries. What is the gradient of what P "
        "devices use?",
        "A sum over the devices, of what each has. copy_to does nothing forward, and adds up backward.",
        "shard(q, group, 0) are your heads. Multiply them with copy_to(k, group).T, and send nothing else.",
    ),
)  # fmt: skip
def scores_of_shared_keys(group: Group, q: Tensor, k: Tensor) -> Tensor:
    """The scores of your heads, (heads/P, tokens, tokens), where all heads share the same keys.

    q (heads, tokens, 4) and k (tokens, 4) are whole. Use your heads of q only. The gradient of k must be right on every
    device, by one all-reduce of its size.
    """
    mine = shard(q, group, 0)  # (heads/P, tokens, 4)  Shard(0)
    return mine @ copy_to(k, group).T  # a copy on each device: its gradient is added up, once


def small(heads: int, kv_heads: int, layers: int = 2, **more: int) -> LlamaConfig:
    sizes = {"hidden": 4 * heads, "inner": 2 * heads, "vocabulary": heads, "positions": 4096, **more}
    return LlamaConfig(layers=layers, heads=heads, kv_heads=kv_heads, **sizes)


def counted_cache(heads: int, kv_heads: int, devices: int, positions: int) -> tuple[int]:
    def held(group: Group) -> int:
        model, caches = Llama(small(heads, kv_heads), group).bfloat16(), [KVCache(), KVCache()]
        model(torch.empty(1, positions, dtype=torch.long), caches=caches)
        return sum(cache.nbytes for cache in caches)

    with torch.device("meta"), torch.no_grad():
        return (Cluster(devices).run(held)[0],)


def bytes_of(heads: float, positions: int) -> int:
    return int(2 * 2 * positions * heads * 4 * 2)


@counting(
    oracle=counted_cache,
    returns=("bytes of the cache",),
    cases=((8, 8, 2, 10), (8, 4, 2, 7), (16, 4, 8, 9), (16, 1, 4, 5), (12, 6, 3, 8)),
    slips={
        "bytes of the cache": {
            "all heads were counted; queries are not kept, and keys and values have kv_heads.": (
                lambda heads, kv_heads, devices, positions: bytes_of(heads / devices, positions)
            ),
            "the heads of keys and values were divided on. A head is not cut: there are copies instead.": (
                lambda heads, kv_heads, devices, positions: bytes_of(kv_heads / devices, positions)
            ),
            "every device has all heads of keys and values here; it needs those that its queries use.": (
                lambda heads, kv_heads, devices, positions: bytes_of(kv_heads, positions)
            ),
            "a number of bfloat16 has 2 bytes; 4 were counted.": (
                lambda heads, kv_heads, devices, positions: 2 * bytes_of(max(1, kv_heads // devices), positions)
            ),
            "a 2 is missing: keys and values, two layers, and two bytes of each number.": (
                lambda heads, kv_heads, devices, positions: bytes_of(max(1, kv_heads // devices), positions) // 2
            ),
        },
    },
    hints=(
        "What is kept for a token that was seen: its query, its key, its value? In how many layers?",
        "With kv_heads = 8 on 2 devices each has 4 heads of keys and values. And with kv_heads = 1 on 4 devices?",
        "max(1, kv_heads // devices) heads, times 4 numbers, times 2 for keys and values, times 2 layers, times "
        "positions, times 2 bytes.",
    ),
)  # fmt: skip
def cache_bytes(heads: int, kv_heads: int, devices: int, positions: int) -> int:
    """Bytes of keys and values that each device keeps of one text of `positions` tokens.

    The model has 2 layers and heads of 4 numbers, in bfloat16, and is split over `devices` by heads.
    """
    mine = max(1, kv_heads // devices)  # a head is never cut: several devices keep a copy
    return 2 * 2 * mine * 4 * positions * 2


def counted_parameters(layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocabulary: int) -> tuple[int]:
    config = small(heads, kv_heads, layers, hidden=hidden, inner=inner, vocabulary=vocabulary)
    with torch.device("meta"):
        return Cluster(1).run(lambda group: (sum(p.numel() for p in Llama(config, group).parameters()),))[0]


def wrong_count(
    matrices: int = 3, grouped: bool = True, ends: int = 2, norms: Callable[[int], int] = lambda layers: 2 * layers + 1
) -> Callable[..., int]:
    def count(layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocabulary: int) -> int:
        common = hidden * kv_heads // heads if grouped else hidden
        layer = 2 * hidden * (hidden + common) + matrices * hidden * inner
        return ends * vocabulary * hidden + layers * layer + norms(layers) * hidden

    return count


@counting(
    oracle=counted_parameters,
    returns=("parameters",),
    cases=((2, 24, 6, 2, 40, 50), (3, 64, 8, 8, 172, 101), (1, 48, 12, 4, 128, 33)),
    slips={
        "parameters": {
            "the MLP has three matrices here: gate, up and down. Two were counted.": wrong_count(matrices=2),
            "keys and values have kv_heads, not heads: their matrices are smaller.": wrong_count(grouped=False),
            "the head is a matrix of its own, as large as the embedding.": wrong_count(ends=1),
            "the last norm is missing, the one behind all layers.": wrong_count(norms=lambda layers: 2 * layers),
            "each layer has two norms; one was counted.": wrong_count(norms=lambda layers: layers + 1),
            "the norms are missing: two in each layer, and one behind all.": wrong_count(norms=lambda layers: 0),
            "an RMSNorm has a weight and no bias.": wrong_count(norms=lambda layers: 2 * (2 * layers + 1)),
        },
    },
    counted="the model has",
    hints=(
        "Write the weights down from top to bottom: embedding; in each layer norm, Q, K, V, output, norm, gate, up, "
        "down; norm; head. None has a bias.",
        "A head has hidden / heads numbers. Q and the output are hidden x hidden; K and V are hidden x (kv_heads times "
        "that).",
        "2 vocabulary hidden + layers (2 hidden² + 2 hidden² kv_heads / heads + 3 hidden inner + 2 hidden) + hidden.",
    ),
)  # fmt: skip
def parameters(layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocabulary: int) -> int:
    """How many parameters a Llama of these sizes has, exactly. The head is not the embedding; nothing has a bias."""
    common = hidden * kv_heads // heads  # columns of keys, and of values
    layer = 2 * hidden * hidden + 2 * hidden * common + 3 * hidden * inner + 2 * hidden
    return 2 * vocabulary * hidden + layers * layer + hidden
