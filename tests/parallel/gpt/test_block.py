"""A whole layer equals the dense one, however it is split and whatever is recomputed; what it sends."""

import pytest
import torch
from covering import covering
from parallel.dense_transformer import (  # noqa: F401
    BATCH,
    DEVICES,
    HEADS,
    HIDDEN,
    LENGTH,
    DenseBlock,
    assert_close,
    assert_equals_dense,
    charged,
    double,
    forward_and_backward,
    refuses,
    shake,
    step,
)
from parallel.variants import variant

from lib import KVCache, ParallelBlock, SequenceLayerNorm, load_dense, shard
from lib.costs.saved_tensors import saved_activations
from lib.devices import Cluster
from lib.parallel.sharding.dense import layout_of

X = (BATCH, LENGTH, HIDDEN)
RECOMPUTE = [None, "selective", "full"]
SPLITS = pytest.mark.parametrize("sequence_dim", [None, 1], ids=["TP", "TP+SP"])


@pytest.mark.parametrize(("size", "sequence_dim", "recompute"), covering(DEVICES, [None, 1], RECOMPUTE))
def test_equals_the_dense_block(size, sequence_dim, recompute):
    assert_equals_dense(
        size,
        lambda g: variant(ParallelBlock, sequence_dim)(HIDDEN, HEADS, g, recompute=recompute),
        DenseBlock(),
        torch.randn(X),
        sequence_dim,
    )


@pytest.mark.parametrize(
    ("layout", "sequence_dim", "recompute"), covering([(4, 2), (4, 4), (2, 4), (1, 3), (3, 12)], [None, 1], RECOMPUTE)
)
def test_with_fewer_heads_of_keys_and_values(layout, sequence_dim, recompute):
    kv_heads, size = layout
    assert_equals_dense(
        size,
        lambda g: variant(ParallelBlock, sequence_dim)(HIDDEN, HEADS, g, kv_heads, 0.0, "tanh", recompute),
        DenseBlock(kv_heads=kv_heads, approximate="tanh"),
        torch.randn(X),
        sequence_dim,
    )


@pytest.mark.parametrize("length", [1, 2, 4, 5, 8])
def test_any_length_is_cut_by_the_rule(length):
    """Also fewer tokens than devices: some hold none."""
    x = torch.randn(BATCH, length, HIDDEN)
    assert_equals_dense(4, lambda g: variant(ParallelBlock, 1)(HIDDEN, HEADS, g), DenseBlock(), x, sequence_dim=1)


@SPLITS
def test_several_steps_of_training(sequence_dim):
    x, target = torch.randn(X), torch.randn(X)

    def train(block, x, target):
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            (block(x) - target).square().sum().div(100).backward()
            optimizer.step()
        return block(x).detach()

    dense = DenseBlock()
    state = {name: value.clone() for name, value in dense.state_dict().items()}
    expected = train(dense, x, target)

    def program(group):
        block = variant(ParallelBlock, sequence_dim)(HIDDEN, HEADS, group, 12)
        load_dense(block, state, group)
        return train(block, *(t if sequence_dim is None else shard(t, group, 1) for t in (x, target)))

    for rank, y in enumerate(Cluster(4).run(program)):
        assert_close(y, expected if sequence_dim is None else expected.tensor_split(4, 1)[rank], rank, 1e-11)


@SPLITS
@pytest.mark.parametrize("trained", ["norm1", "attention.qkv", "attention.out", "mlp.up", "mlp.down"])
def test_frozen_parameters_get_no_gradient_and_the_others_the_same(trained, sequence_dim):
    dense, x, upstream = shake(DenseBlock()), torch.randn(X), torch.randn(X)
    expected = step(dense, x, upstream).grads

    def program(group):
        block = variant(ParallelBlock, sequence_dim)(HIDDEN, HEADS, group)
        load_dense(block, dense.state_dict(), group)
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(name.startswith(trained))
        pieces = (t if sequence_dim is None else shard(t, group, 1) for t in (x, upstream))
        return block, step(block, *pieces).grads

    for rank, (block, grads) in enumerate(Cluster(2).run(program)):
        for name, grad in grads.items():
            assert (grad is not None) == name.startswith(trained), name
            if grad is not None:
                assert_close(grad, layout_of(block, name).piece(expected[name], 2, rank), name)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@SPLITS
def test_the_cache_goes_to_the_attention(sequence_dim, recompute):
    """Token by token; with sequence parallelism device 0 holds each, and the others nothing."""
    dense, x = shake(DenseBlock()), torch.randn(X)

    @torch.no_grad()
    def program(group):
        block, cache = variant(ParallelBlock, sequence_dim)(HIDDEN, HEADS, group, recompute=recompute), KVCache()
        load_dense(block, dense.state_dict(), group)
        tokens = (token if sequence_dim is None else shard(token, group, 1) for token in x.split(1, 1))
        return torch.cat([block(token, cache) for token in tokens], 1)

    for rank, y in enumerate(Cluster(4).run(program)):
        assert_close(y, dense(x).detach() if sequence_dim is None or rank == 0 else x[:, :0], rank)


def test_the_norms_are_those_of_own_tokens_only_where_tokens_are_cut():
    def program(group):
        return [
            isinstance(norm, SequenceLayerNorm)
            for dim in (None, 0, 1)
            for norm in (lambda block: (block.norm1, block.norm2))(variant(ParallelBlock, dim)(24, 12, group))
        ]

    assert Cluster(2).run(program) == [[False, False, True, True, True, True]] * 2


@pytest.mark.parametrize(("recompute", "kept"), [(None, 1), ("selective", 0), ("full", 0)])
def test_scores_are_kept_only_where_nothing_is_recomputed(recompute, kept):
    def program(group):
        blocks = saved_activations(ParallelBlock(HIDDEN, HEADS, group, recompute=recompute), torch.randn(X))
        return sum(block.shape[-2:] == (LENGTH, LENGTH) for block in blocks)

    assert Cluster(4).run(program) == [kept] * 4  # for the softmax and for the product with the values, in one block


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_gradients_may_be_asked_for_one_by_one_with_recomputation_too(recompute):
    """Checkpoints of PyTorch's older kind refuse `torch.autograd.grad`."""
    x = torch.randn(X, requires_grad=True)

    def program(group, recompute=None):
        torch.manual_seed(3)
        block = ParallelBlock(HIDDEN, HEADS, group, recompute=recompute)
        return torch.autograd.grad(block(x).square().sum(), x)[0]

    (expected,) = Cluster(1).run(program)
    for grad in Cluster(2).run(program, recompute):
        assert_close(grad, expected, recompute)


def test_dropout_acts_on_the_weights_of_attention_and_on_what_both_regions_leave():
    def program(group):
        shares, block = [], ParallelBlock(HIDDEN, HEADS, group, dropout=0.5)

        def note(_, inputs, y):
            shares.append(float((y == 0).sum() - (inputs[0] == 0).sum()) / float((inputs[0] != 0).sum()))

        for layer in (block.attention.dropout, block.dropout):
            layer.register_forward_hook(note)
        block(torch.randn(2, 40, HIDDEN))
        return shares

    for shares in Cluster(2).run(program):
        assert len(shares) == 3
        assert all(0.4 < share < 0.6 for share in shares), "half of what was not 0"


# ---- what is sent ----

WHOLE = BATCH * 8 * HIDDEN * 8  # bytes of (batch, 8, hidden) in float64


def run_block(sequence_dim, recompute=None, dropout=0.0):
    def run(group):
        block = variant(ParallelBlock, sequence_dim)(HIDDEN, HEADS, group, dropout=dropout, recompute=recompute)
        x = torch.randn(BATCH, 8, HIDDEN)
        return block((x if sequence_dim is None else shard(x, group, sequence_dim)).requires_grad_())

    return run


SENDING = pytest.mark.parametrize(
    ("size", "recompute", "dropout"), covering([1, 2, 4], [None, "selective"], [0.0, 0.1])
)


@SENDING
def test_two_all_reduces_forward_and_two_backward(size, recompute, dropout):
    twice = {"all_reduce": (2, 2 * 2 * (size - 1) * WHOLE // size)}
    assert forward_and_backward(size, run_block(None, recompute, dropout)) == (twice, twice)


@SENDING
def test_gathers_and_scatters_with_sequence_parallelism(size, recompute, dropout):
    """Forward the bytes of tensor parallelism. Backward two gathers more, since the whole input is not kept."""
    trip = (size - 1) * WHOLE // size
    small = 2 * (size - 1) * HIDDEN * 8 // size
    forward, backward = forward_and_backward(size, run_block(1, recompute, dropout))
    assert forward == {"all_gather": (2, 2 * trip), "reduce_scatter": (2, 2 * trip)}
    assert backward == {"all_gather": (4, 4 * trip), "reduce_scatter": (2, 2 * trip), "all_reduce": (6, 6 * small)}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_full_recomputation_sends_the_forward_once_more(dropout):
    """PyTorch stops recomputing at the last tensor that the backward needs: without dropout behind it, that is before
    the last sum."""
    again = 2 if dropout else 1
    trip = 3 * WHOLE // 4
    forward, backward = forward_and_backward(4, run_block(None, "full", dropout))
    assert forward == {"all_reduce": (2, 4 * trip)}
    assert backward == {"all_reduce": (2 + again, (2 + again) * 2 * trip)}
    _, backward = forward_and_backward(4, run_block(1, "full", dropout))
    assert backward["all_gather"] == (4 + 2, 6 * trip)
    assert backward["reduce_scatter"] == (2 + again, (2 + again) * trip)


# ---- refusals, types, shapes without data ----


def test_an_unknown_recomputation():
    fragments = ["ParallelBlock: recompute='all' must be None, 'selective' or 'full'"]
    refuses(fragments, lambda g: ParallelBlock(HIDDEN, HEADS, g, recompute="all"))


def test_heads_that_do_not_fit():
    refuses(["12 heads cannot be split over 5 devices"], lambda g: ParallelBlock(HIDDEN, HEADS, g), size=5)


@SPLITS
@pytest.mark.parametrize("shape", [(2, 4, HIDDEN // 4), (4, HIDDEN)], ids=str)
def test_an_input_that_is_cut_along_the_hidden_size_or_has_no_batch(shape, sequence_dim):
    fragments = [
        f"{variant(ParallelBlock, sequence_dim).__name__} on rank 0 of 4",
        f"an input of shape {shape}",
        f"it must be (batch, S, {HIDDEN})",
    ]
    refuses(fragments, lambda g: variant(ParallelBlock, sequence_dim)(HIDDEN, HEADS, g)(torch.ones(shape)))


def test_tokens_that_are_not_cut_by_the_rule():
    def program(group):
        return variant(ParallelBlock, 1)(HIDDEN, HEADS, group)(torch.ones(2, 1 + group.rank, HIDDEN))

    with pytest.raises(ValueError) as error:
        Cluster(2).run(program)
    message = "gather_linear on rank 1 of 2: this device brought 2 of 3 along dim -2, but the sharding rule gives it 1"
    assert message in str(error.value)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@SPLITS
def test_float32(sequence_dim, recompute):
    torch.set_default_dtype(torch.float32)
    assert_equals_dense(
        4,
        lambda g: variant(ParallelBlock, sequence_dim)(HIDDEN, HEADS, g, recompute=recompute),
        DenseBlock(),
        torch.randn(X),
        sequence_dim,
        tolerance=1e-5,
    )


@pytest.mark.parametrize("recompute", RECOMPUTE)
@SPLITS
def test_a_layer_of_gpt_3_on_the_meta_device_in_bf16(sequence_dim, recompute):
    hidden, tokens, size = 12288, 2048, 8
    cluster = Cluster(size)

    def program(group):
        with torch.device("meta"):
            block = variant(ParallelBlock, sequence_dim)(hidden, 96, group, dropout=0.1, recompute=recompute)
            mine = tokens if sequence_dim is None else tokens // size
            x = torch.empty(1, mine, hidden, dtype=torch.bfloat16, requires_grad=True)
            y = block.bfloat16()(x)
            y.backward(torch.empty_like(y))
            assert (y.shape, y.dtype) == (x.shape, x.dtype) == (x.grad.shape, x.grad.dtype)
            return sum(p.grad.numel() for p in block.parameters())

    # weights and biases of qkv and up by columns; weights of out and down by rows; the rest on every device
    assert cluster.run(program) == [(12 * hidden**2 + 7 * hidden) // size + 6 * hidden] * size
    each, small = 7 * tokens * hidden * 2 // 8, 2 * 7 * hidden * 2 // 8
    expected = {"all_reduce": (4, 8 * each)}
    if sequence_dim is not None:
        expected = {"all_gather": (6, 6 * each), "reduce_scatter": (4, 4 * each), "all_reduce": (6, 6 * small)}
    if recompute != "full":
        assert charged(cluster) == expected
