"""Attention over a cut sequence equals dense attention: values and all gradients, each way to do it and to cut it."""

from functools import partial

import pytest
import torch
from covering import covering
from parallel.dense_transformer import double, refuses  # noqa: F401
from torch.nn import functional as F

from lib import equal_to_one_device
from lib.devices import Cluster, Hardware, Link
from lib.parallel.attention.attention import ParallelSelfAttention
from lib.parallel.attention.kernels import attend
from lib.parallel.context.cut import CutTokens
from lib.parallel.context.gathered import GatheredAttention
from lib.parallel.context.ring import RingAttention
from lib.parallel.context.ulysses import UlyssesAttention

LENGTH, HEADS, SIZE = 19, 8, 4  # a length that no number of devices divides
TEXTS = torch.tensor([0] * 3 + [1] * 7 + [2] * 9)
ORDERS = ["contiguous", "striped", "zigzag"]
WAYS = {  # the class, and how many neighbors share a piece of the cut
    "ring": (RingAttention, lambda size: 1),
    "gathered": (GatheredAttention, lambda size: 1),
    "Ulysses": (UlyssesAttention, lambda size: size),
    "Ulysses in rings": (partial(UlyssesAttention, heads=2), lambda size: 2),
}


def dense(causal, documents, q, k, v):
    length = q.shape[2]
    mask = torch.ones(length, length, dtype=torch.bool)
    mask = mask.tril() if causal else mask
    if documents is not None:
        mask = mask & (documents[:, None] == documents[None, :])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def compare(way, size, order, causal=True, kv_heads=HEADS, documents=None, length=LENGTH):
    make, inner = WAYS[way]
    cut = CutTokens(order, 2, inner(size))
    q, (k, v) = torch.randn(2, HEADS, length, SIZE), torch.randn(2, 2, kv_heads, length, SIZE)
    return equal_to_one_device(
        lambda group: lambda q, k, v: make(group, length, order, documents)(q, k, v, causal),
        *(q, k, v),
        devices=size,
        cut=cut,
        output=cut,
        against=partial(dense, causal, documents),
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", range(1, 9))
def test_a_ring_of_any_size(size, order):
    assert compare("ring", size, order)


LAYOUTS = [
    ("ring", 4, "zigzag"), ("ring", 3, "striped"), ("gathered", 3, "zigzag"), ("gathered", 4, "striped"),
    ("Ulysses", 4, "contiguous"), ("Ulysses in rings", 4, "zigzag"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "kv_heads", "causal", "packed"), covering(LAYOUTS, [8, 2, 1], [True, False], [True, False])
)
def test_every_mask_and_shared_heads(layout, kv_heads, causal, packed):
    assert compare(*layout, causal, kv_heads, TEXTS if packed else None)


@pytest.mark.parametrize(("way", "size", "order"), [
    ("gathered", 8, "contiguous"), ("gathered", 5, "zigzag"), ("gathered", 1, "zigzag"), ("Ulysses", 1, "contiguous"),
    ("Ulysses", 8, "striped"), ("Ulysses in rings", 8, "zigzag"), ("Ulysses in rings", 6, "striped"),
    ("Ulysses in rings", 2, "contiguous"),
])  # fmt: skip
def test_other_ways_on_other_sizes(way, size, order):
    assert compare(way, size, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("way", ["ring", "gathered"])
def test_as_many_tokens_as_devices(way, order):
    assert compare(way, 5, order, length=5)


def test_texts_in_any_order_of_their_numbers():
    assert compare("ring", 4, "zigzag", documents=torch.tensor([5] * 6 + [0] * 8 + [5] * 5))


# ---- as an argument of a layer, with tensor parallelism, and with rotated positions ----


def rotate(x, at):
    """RoPE: (batch, heads, n, d), each pair of numbers turned by an angle that grows with the position."""
    angles = at[:, None] / 10 ** torch.arange(x.shape[-1] // 2)  # (n, d/2)
    turn = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)


@pytest.mark.parametrize("order", ORDERS)
def test_rope_with_the_true_positions_of_each_piece(order):
    def run(at):
        def make(group):
            ring = RingAttention(group, LENGTH, order)
            here = at(ring, torch.arange(LENGTH))
            return lambda q, k, v: ring(rotate(q, here), rotate(k, here), v)

        inputs = torch.randn(3, 2, HEADS, LENGTH, SIZE)
        cut = CutTokens(order, 2)
        return equal_to_one_device(make, *inputs, devices=4, cut=cut, output=cut)

    assert run(lambda ring, positions: ring.own(positions, 0))
    assert not run(lambda ring, positions: torch.arange(len(ring.own(positions, 0)))), "local positions are wrong"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("make", [RingAttention, GatheredAttention, UlyssesAttention])
def test_one_argument_of_a_layer(make, recompute):
    """Context parallel over 4 devices; the weights see only their own tokens, so their gradients are partial."""

    def program(group):
        torch.manual_seed(1)
        context, alone = make(group, 16), group.split(group.size)
        attention = ParallelSelfAttention(32, 4, alone, 4, attend=context, recompute=recompute)
        mine = context.own(torch.randn(2, 16, 32)).clone().requires_grad_()
        y = attention(mine)
        y.square().sum().backward()
        return context.cut, y.detach(), mine.grad, [group.all_reduce(p.grad) for p in attention.parameters()]

    ((_, expected, x_grad, grads),) = Cluster(1).run(program)
    cuts, outputs, x_grads, summed = zip(*Cluster(4).run(program), strict=True)
    torch.testing.assert_close(cuts[0].whole(outputs), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(cuts[0].whole(x_grads), x_grad, atol=1e-11, rtol=0)
    torch.testing.assert_close(summed[0], grads, atol=1e-11, rtol=0)


# ---- what is sent ----


def sent(way, size, kv_heads=HEADS, backward=True, length=16):
    """{verb: (calls, bytes)} of device 0."""

    def program(group):
        make, inner = WAYS[way]
        cut = CutTokens("contiguous", 2, inner(size))
        q, (k, v) = torch.randn(2, HEADS, length, SIZE), torch.randn(2, 2, kv_heads, length, SIZE)
        mine = [cut.piece(x, size, group.rank).clone().requires_grad_(backward) for x in (q, k, v)]
        y = make(group, length, "contiguous")(*mine)
        if backward:
            y.sum().backward()

    cluster = Cluster(size)
    cluster.run(program)
    counts = {verb: cluster.meters.count(0, verb) for verb in cluster.meters.verbs()}
    return {verb: (count.calls, count.bytes_sent) for verb, count in counts.items() if count.bytes_sent}


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_bytes_of_every_way(size, kv_heads):
    q, kv = (2 * heads * 16 * SIZE * 8 for heads in (HEADS, 2 * kv_heads))  # of the whole sequence; keys and values
    others = size - 1
    assert sent("ring", size, kv_heads, False) == {"send": (others, others * kv // size)}
    assert sent("ring", size, kv_heads) == {"send": (3 * others, 3 * others * kv // size)}
    assert sent("gathered", size, kv_heads, False) == {"all_gather": (1, others * kv // size)}
    gathered = sent("gathered", size, kv_heads)
    assert gathered == {"all_gather": (1, others * kv // size), "reduce_scatter": (1, others * kv // size)}
    copied = kv * max(1, size // kv_heads)  # one for each device, where there are fewer heads
    assert sent("Ulysses", size, kv_heads, False) == {"all_to_all": (4, others * (2 * q + copied) // size**2)}
    assert sent("Ulysses", size, kv_heads) == {"all_to_all": (8, 2 * others * (2 * q + copied) // size**2)}


def test_one_device_sends_nothing():
    assert all(sent(way, 1) == {} for way in ("ring", "gathered", "Ulysses"))


# ---- time: the ring hides its messages behind the blocks ----


def seconds(bandwidth, order="contiguous", way=RingAttention, causal=False, heads=8):
    """Virtual time of a forward over 4 devices of 256 tokens; memory is free, so a block takes what its FLOPs do."""
    toy = Hardware("toy", flops=1e9, memory_bandwidth=1e30, memory=1e30, inside=Link(0.0, bandwidth))

    def program(group):
        q, k, v = torch.empty(3, 1, heads, 256, 16, device="meta", dtype=torch.bfloat16)
        way(group, 1024, order)(q, k, v, causal)

    cluster = Cluster(4, hardware=toy)
    cluster.run(program)
    return cluster.trace


BLOCK = 4 * 8 * 256 * 256 * 16 / 1e9  # seconds
MESSAGE = 2 * 8 * 256 * 16 * 2  # bytes


def test_a_fast_enough_link_costs_nothing():
    assert seconds(MESSAGE / BLOCK * 1.001).seconds == pytest.approx(4 * BLOCK, rel=1e-3)
    assert seconds(MESSAGE / BLOCK / 2).seconds == pytest.approx(BLOCK + 3 * 2 * BLOCK)
    assert seconds(MESSAGE / BLOCK, way=GatheredAttention).seconds == pytest.approx((3 + 4) * BLOCK)


def test_a_causal_ring_waits_for_the_busiest_device():
    """Contiguous: the last device computes at every hop. Zigzag: everyone half a block at each."""
    fast = 1e30
    assert seconds(fast, "contiguous", causal=True).seconds == pytest.approx((3 + 1 / 2) * BLOCK)
    assert seconds(fast, "zigzag", causal=True).seconds == pytest.approx(4 / 2 * BLOCK)
    assert seconds(fast, "striped", causal=True).seconds == pytest.approx(4 / 2 * BLOCK, rel=0.01)
    assert seconds(fast, "contiguous", causal=True).total(0, "compute") == pytest.approx(BLOCK / 2)


# ---- what is refused ----

Q = torch.zeros(1, 4, 4, 2)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            ["a sequence of 3 tokens cannot be cut over 4 devices: each needs at least one"],
            lambda group: RingAttention(group, 3),
        ),
        (
            ["RingAttention(16 tokens, zigzag) on rank", "q (1, 4, 3, 2)", "this device's 4 tokens", "own(x)"],
            lambda group: RingAttention(group, 16)(Q[:, :, :3], Q[:, :, :3], Q[:, :, :3]),
        ),
        (
            ["k (1, 3, 4, 2)", "the heads of q a multiple of theirs"],
            lambda group: RingAttention(group, 16)(Q, Q[:, :3], Q[:, :3]),
        ),
        (
            ["documents of shape (15,)", "one whole number for each of the 16 tokens"],
            lambda group: GatheredAttention(group, 16, documents=torch.zeros(15, dtype=torch.long)),
        ),
        (
            ["documents of shape (16,) and torch.float64"],
            lambda group: RingAttention(group, 16, documents=torch.zeros(16)),
        ),
        (
            ["a tensor of shape (2, 15) must have all 16 along dim 1"],
            lambda group: RingAttention(group, 16).own(torch.zeros(2, 15)),
        ),
        (
            ["UlyssesAttention", "4 devices cannot split 6 heads of queries and 6 of keys and values", "a ring"],
            lambda group: UlyssesAttention(group, 16)(*torch.zeros(3, 1, 6, 4, 2)),
        ),
        (
            ["4 devices cannot split 12 heads of queries and 3 of keys and values"],
            lambda group: UlyssesAttention(group, 16)(torch.zeros(1, 12, 4, 2), *torch.zeros(2, 1, 3, 4, 2)),
        ),
        (
            ["4 devices cannot be laid out in rows of 3"],
            lambda group: UlyssesAttention(group, 16, heads=3),
        ),
        (
            ["dropout=0.1 on the attention weights"],
            lambda group: ParallelSelfAttention(
                8, 4, group.split(4), dropout=0.1, attend=RingAttention(group, 16)
            )(torch.zeros(1, 4, 8)),
        ),
    ],
)  # fmt: skip
def test_refused_before_anything_is_sent(words, call):
    refuses(words, call)


@pytest.mark.parametrize("make", [RingAttention, GatheredAttention, UlyssesAttention])
@pytest.mark.parametrize("size", [1, 2])
def test_heads_whose_numbers_do_not_lie_next_to_each_other(make, size):
    """As rotary positions leave them: PyTorch's kernel would read other numbers, and give other gradients."""
    qkv = torch.randn(3, 1, 2, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    above = torch.randn(1, 2, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def outcome(attend, own):
        q, k, v = (own(x).mT.contiguous().mT.requires_grad_() for x in qkv)
        y = attend(q, k, v)
        y.backward(own(above).mT.contiguous().mT)
        return y.detach(), q.grad, k.grad, v.grad

    right = outcome(attend, lambda x: x)

    def program(group):
        cut = make(group, 8)
        found = outcome(cut, lambda x: cut.own(x, 2))
        return max(float((mine - cut.own(whole, 2)).abs().max()) for mine, whole in zip(found, right, strict=True))

    assert max(Cluster(size).run(program)) < 1e-12
