"""Attention: its core against PyTorch's own, heads over devices against one device, and the cache."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parallel.dense_transformer import (  # noqa: F401
    BATCH,
    HEADS,
    HIDDEN,
    LENGTH,
    DenseAttention,
    assert_close,
    assert_equals_dense,
    double,
    forward_and_backward,
    refuses,
)
from parallel.variants import variant
from torch.nn import functional as F

from lib import KVCache, ParallelSelfAttention, attend, load_dense, shard
from lib.devices import Cluster

X = (BATCH, LENGTH, HIDDEN)
# (kv_heads, devices): as many as heads, fewer, fewer than devices, one for all
LAYOUTS = [
    (12, 1),
    (12, 2),
    (12, 3),
    (12, 4),
    (12, 6),
    (12, 12),
    (6, 3),
    (4, 2),
    (4, 4),
    (4, 12),
    (2, 4),
    (1, 1),
    (1, 4),
]
LAYOUTS_OF = pytest.mark.parametrize(("kv_heads", "size"), LAYOUTS)

# ---- the core ----


@given(st.integers(1, 6), st.integers(0, 5), st.sampled_from([1, 2, 4]), st.booleans(), st.sampled_from([1, 3]))
def test_attend_equals_pytorch_s_own(length, before, kv_heads, causal, d):
    """`before` positions came earlier: the last query stands at the last key."""
    torch.manual_seed(length)
    seen = before + length
    q = torch.randn(2, 4, length, d, requires_grad=True)
    k, v = (torch.randn(2, kv_heads, seen, d, requires_grad=True) for _ in range(2))
    mask = torch.ones(length, seen, dtype=torch.bool).tril(before) if causal else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    y, upstream = attend(q, k, v, causal), torch.randn(2, 4, length, d)
    assert_close(y, expected, "output")
    leaves = q, k, v
    for number, pair in enumerate(
        zip(torch.autograd.grad(y, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True)
    ):
        assert_close(*pair, number)


def test_causal_unless_asked_otherwise():
    q, k, v = torch.randn(3, 1, 2, 4, 3)
    assert torch.equal(attend(q, k, v), attend(q, k, v, causal=True))
    assert_close(attend(q, k, v)[:, :, 0], v[:, :, 0], "the first position sees itself alone")
    assert not torch.allclose(attend(q, k, v, causal=False)[:, :, 0], v[:, :, 0])


def test_dropout_acts_on_the_weights():
    q, k, v = torch.randn(3, 1, 2, 4, 3)
    seen = []
    y = attend(q, k, v, dropout=lambda weights: (seen.append(weights), 2 * weights)[1])
    assert_close(seen[0].sum(-1), torch.ones(1, 2, 4), "each row of the weights is an average")
    assert_close(y, 2 * attend(q, k, v), "output")


def test_values_2_5_and_9_with_weights_one_three_and_six_tenths():
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([0.1, 0.3, 0.6]).log().reshape(1, 1, 3, 1)
    v = torch.tensor([2.0, 5.0, 9.0]).reshape(1, 1, 3, 1)
    assert float(attend(q, k, v)) == pytest.approx(7.1, abs=1e-12)


# ---- the layer ----


@pytest.mark.parametrize("sequence_dim", [None, 1])
@LAYOUTS_OF
def test_equals_dense_attention(kv_heads, size, sequence_dim):
    assert_equals_dense(
        size,
        lambda g: variant(ParallelSelfAttention, sequence_dim)(HIDDEN, HEADS, g, kv_heads),
        DenseAttention(kv_heads=kv_heads),
        torch.randn(X),
        sequence_dim,
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_every_token_may_see_every_other(recompute):
    assert_equals_dense(
        4,
        lambda g: ParallelSelfAttention(HIDDEN, HEADS, g, causal=False, recompute=recompute),
        DenseAttention(causal=False),
        torch.randn(X),
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputation_keeps_no_scores(recompute):
    def program(group):
        kept, attention = [], ParallelSelfAttention(HIDDEN, HEADS, group, recompute=recompute)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.shape), t)[1], lambda t: t):
            attention(torch.randn(X, requires_grad=True))
        return sum(shape[-2:] == (LENGTH, LENGTH) for shape in kept)

    assert Cluster(4).run(program) == [0 if recompute else 2] * 4  # for the softmax, and for the product with v


def test_float32():
    torch.set_default_dtype(torch.float32)
    assert_equals_dense(
        4,
        lambda g: variant(ParallelSelfAttention, 1)(HIDDEN, HEADS, g, 2),
        DenseAttention(kv_heads=2),
        torch.randn(X),
        sequence_dim=1,
        tolerance=1e-5,
    )


# ---- the cache ----


def attention_with_weights(group, dense, kv_heads):
    attention = ParallelSelfAttention(HIDDEN, HEADS, group, kv_heads)
    load_dense(attention, dense.state_dict(), group)
    return attention


@pytest.mark.parametrize("steps", [[1] * LENGTH, [LENGTH], [3, 1, 3], [1, 5, 1]], ids=str)
@pytest.mark.parametrize(("kv_heads", "size"), [(12, 1), (12, 4), (4, 2), (2, 4), (1, 12)])
def test_step_by_step_equals_all_at_once(kv_heads, size, steps):
    dense, x = DenseAttention(kv_heads=kv_heads), torch.randn(X)

    @torch.no_grad()
    def program(group):
        attention, cache = attention_with_weights(group, dense, kv_heads), KVCache()
        outputs, sizes = [], [(cache.seen, cache.nbytes)]
        for piece in x.split(steps, 1):
            outputs.append(attention(piece, cache))
            sizes.append((cache.seen, cache.nbytes))
        return torch.cat(outputs, 1), sizes, cache

    per_position = 2 * BATCH * max(1, kv_heads // size) * (HIDDEN // HEADS) * 8
    seen = [sum(steps[:number]) for number in range(len(steps) + 1)]
    for y, sizes, cache in Cluster(size).run(program):
        assert_close(y, dense(x).detach(), "output")
        assert sizes == [(n, n * per_position) for n in seen]
        assert cache.keys.shape == cache.values.shape == (BATCH, max(1, kv_heads // size), LENGTH, HIDDEN // HEADS)


def test_the_cache_shrinks_with_the_devices_until_copies_begin():
    def program(group):
        cache = KVCache()
        ParallelSelfAttention(HIDDEN, HEADS, group, kv_heads=4)(torch.ones(X), cache)
        return cache.nbytes

    whole = Cluster(1).run(program)[0]
    assert [Cluster(size).run(program)[0] for size in (2, 4, 12)] == [whole // 2, whole // 4, whole // 4]


def test_a_cache_keeps_a_sequence_and_a_new_one_starts_afresh():
    dense, x = DenseAttention(), torch.randn(X)

    @torch.no_grad()
    def program(group):
        attention = attention_with_weights(group, dense, HEADS)
        attention(x, KVCache())
        return attention(x, KVCache()) - attention(x)

    assert all(not difference.any() for difference in Cluster(2).run(program))


# ---- what is sent, what is refused ----

WHOLE = BATCH * 8 * HIDDEN * 8


def run_attention(kv_heads=HEADS, sequence_dim=None, recompute=False):
    def run(group):
        attention = variant(ParallelSelfAttention, sequence_dim)(HIDDEN, HEADS, group, kv_heads, recompute=recompute)
        x = torch.randn(BATCH, 8, HIDDEN)
        return attention((x if sequence_dim is None else shard(x, group, sequence_dim)).requires_grad_())

    return run


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_one_all_reduce_forward_and_one_backward(size, recompute):
    once = {"all_reduce": (1, 2 * (size - 1) * WHOLE // size)}
    assert forward_and_backward(size, run_attention(recompute=recompute)) == (once, once)


@pytest.mark.parametrize("recompute", [False, True])
def test_with_sequence_parallelism(recompute):
    trip = 3 * WHOLE // 4
    forward, backward = forward_and_backward(4, run_attention(sequence_dim=1, recompute=recompute))
    assert forward == {"all_gather": (1, trip), "reduce_scatter": (1, trip)}
    bias = 2 * 3 * HIDDEN * 8 // 4
    assert backward == {"all_gather": (2, 2 * trip), "reduce_scatter": (1, trip), "all_reduce": (1, bias)}


@pytest.mark.parametrize(("kv_heads", "copies"), [(2, 2), (1, 4)])
def test_shared_keys_and_values_cost_the_sum_of_their_gradients(kv_heads, copies):
    forward, backward = forward_and_backward(4, run_attention(kv_heads))
    activations = 2 * 3 * WHOLE // 4
    assert forward == {"all_reduce": (1, activations)}
    rows = 2 * HIDDEN // HEADS  # of one head's keys and values
    shared = 2 * (copies - 1) * rows * (HIDDEN + 1) * 8 // copies  # weight and bias
    assert backward == {"all_reduce": (3, activations + shared)}


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "message"),
    [
        (12, None, 5, "12 heads cannot be split over 5 devices: possible are 1, 2, 3, 4, 6, 12"),
        (7, None, 7, "a hidden size of 24 cannot be divided into 7 heads"),
        (12, 8, 4, "12 heads cannot share 8 heads of keys and values: it must divide 12"),
        (12, 4, 6, "4 heads of keys and values cannot be laid out over 6 devices"),
        (0, None, 2, "hidden=24, heads=0, kv_heads=0: each must be at least 1"),
    ],
)
def test_heads_that_do_not_fit(heads, kv_heads, size, message):
    refuses([message], lambda group: ParallelSelfAttention(HIDDEN, heads, group, kv_heads), size)


def test_a_piece_where_the_whole_hidden_is_expected():
    fragments = [
        "ParallelQKV(in=24, out=18 of 72, rank=0) on rank 0 of 4 got an input of shape (2, 7, 6)",
        "must be 24",
    ]
    refuses(fragments, lambda group: ParallelSelfAttention(HIDDEN, HEADS, group)(torch.ones(2, 7, 6)))
