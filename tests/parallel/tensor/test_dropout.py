"""Dropout over many devices: equal masks on replicas, different ones on shards, and both right for the dense model."""

import math

import pytest
import torch
from parallel.dense_transformer import BATCH, HEADS, HIDDEN, double  # noqa: F401
from parallel.variants import variant
from torch.nn import functional as F

from lib import ParallelBlock, ParallelDropout, dense_state, shard, unshard
from lib.devices import Cluster


def masks(size, sharded, p=0.5, seed=0, times=1):
    """Per device, what is kept of ones, after each of `times` uses."""
    torch.manual_seed(seed)

    def program(group):
        dropout = ParallelDropout(p, group, sharded)
        return [dropout(torch.ones(8, 8)) for _ in range(times)]

    return Cluster(size).run(program)


def all_differ(tensors):
    return all(not torch.equal(a, b) for i, a in enumerate(tensors) for b in tensors[:i])


def test_replicas_drop_the_same_and_shards_do_not():
    assert all(torch.equal(mask, masks(4, sharded=False)[0][0]) for (mask,) in masks(4, sharded=False))
    assert all_differ([mask for (mask,) in masks(4, sharded=True)])


@pytest.mark.parametrize("sharded", [True, False])
def test_every_use_draws_new_numbers_and_every_seed_the_same_again(sharded):
    first = masks(3, sharded, times=2)
    again, other = masks(3, sharded, times=2), masks(3, sharded, seed=1, times=2)
    for rank in range(3):
        assert all_differ([*first[rank], *other[rank]])
        assert all(torch.equal(a, b) for a, b in zip(first[rank], again[rank], strict=True))


def test_a_sharded_dropout_leaves_the_streams_together():
    def program(group):
        ParallelDropout(0.5, group, sharded=True)(torch.ones(3 + group.rank))  # pieces may differ in length
        return float(torch.rand(()))

    numbers = Cluster(4).run(program)
    assert numbers == [numbers[0]] * 4


@pytest.mark.parametrize("sharded", [True, False])
def test_the_share_that_is_dropped_and_the_scale_of_the_rest(sharded):
    torch.manual_seed(0)

    def program(group):
        x = torch.ones(10_000, requires_grad=True)
        y = ParallelDropout(0.2, group, sharded)(x)
        y.sum().backward()
        assert torch.equal(x.grad, y), "what is dropped gets no gradient, and the rest the same scale"
        return y.detach()

    for y in Cluster(2).run(program):
        assert y.unique().tolist() == [0, 1.25]
        assert abs(float((y == 0).double().mean()) - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 10_000)


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
@pytest.mark.parametrize("sharded", [True, False])
def test_off_it_changes_nothing_and_draws_nothing(p, training, sharded):
    expected = (torch.manual_seed(0), float(torch.rand(())))[1]
    torch.manual_seed(0)
    x = torch.ones(4)

    def program(group):
        assert ParallelDropout(p, group, sharded).train(training)(x) is x
        return float(torch.rand(()))

    assert Cluster(2).run(program) == [expected] * 2


@pytest.mark.parametrize("p", [-0.1, 1, 1.5])
def test_a_share_out_of_range(p):
    with pytest.raises(ValueError, match=rf"ParallelDropout\(p={p}\): the share of elements to drop must be in"):
        Cluster(2).run(lambda group: ParallelDropout(p, group, sharded=False))


def test_the_mask_takes_one_byte_per_element():
    def program(group):
        kept = []
        x = torch.ones(1000, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes), lambda t: t):
            ParallelDropout(0.1, group, sharded=False)(x)
        return kept

    assert Cluster(1).run(program) == [[1000]]


def test_it_shows_its_p_and_its_kind():
    def program(group):
        return [repr(ParallelDropout(0.1, group, sharded)) for sharded in (True, False)]

    assert Cluster(1).run(program) == [["ParallelDropout(p=0.1, sharded)", "ParallelDropout(p=0.1, replicated)"]]


# ---- in a block ----

LENGTH, P_DROP = 6, 0.3


def recorded(block):
    """Lists that fill, while the block runs, with what each of its three dropouts multiplies by."""
    factors = {"attention": [], "outside": []}

    def record(where):
        return lambda module, inputs, output: factors[where].append((output.detach() != 0) / (1 - module.p))

    block.attention.dropout.register_forward_hook(record("attention"))
    block.dropout.register_forward_hook(record("outside"))
    return factors


def dense_block(state, x, attention, after_attention, after_mlp):
    """The block on one device, in plain PyTorch, with the given dropout masks."""
    y = F.layer_norm(x, (HIDDEN,), state["norm1.weight"], state["norm1.bias"])
    qkv = F.linear(y, state["attention.qkv.weight"], state["attention.qkv.bias"])
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
    scores = q @ k.mT / math.sqrt(HIDDEN // HEADS)
    ahead = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(ahead, -torch.inf).softmax(-1) * attention
    y = F.linear((weights @ v).transpose(1, 2).flatten(2), state["attention.out.weight"], state["attention.out.bias"])
    x = x + y * after_attention
    y = F.layer_norm(x, (HIDDEN,), state["norm2.weight"], state["norm2.bias"])
    y = F.gelu(F.linear(y, state["mlp.up.weight"], state["mlp.up.bias"]))
    return x + F.linear(y, state["mlp.down.weight"], state["mlp.down.bias"]) * after_mlp


def run_block(size, sequence_dim, x, recompute=None):
    """(block, output, gradient of the input, recorded masks) of each device."""
    torch.manual_seed(11)

    def program(group):
        block = variant(ParallelBlock, sequence_dim)(HIDDEN, HEADS, group, dropout=P_DROP, recompute=recompute)
        factors = recorded(block)
        mine = (x if sequence_dim is None else shard(x, group, sequence_dim)).clone().requires_grad_()
        y = block(mine)
        y.square().sum().backward()
        return block, y.detach(), mine.grad, factors

    return Cluster(size).run(program)


@pytest.mark.parametrize("sequence_dim", [None, 1])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_with_the_same_masks_the_dense_block_gives_the_same(size, sequence_dim):
    x = torch.randn(BATCH, LENGTH, HIDDEN)
    outputs = run_block(size, sequence_dim, x)
    factors = [output[3] for output in outputs]
    attention = [f["attention"][0] for f in factors]  # (batch, heads/P, S, S)
    if size > 1:
        below = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        assert all_differ([mask * below for mask in attention])
    if sequence_dim is None:
        assert all(torch.equal(a, b) for f in factors for a, b in zip(f["outside"], factors[0]["outside"], strict=True))
        outside = factors[0]["outside"]
    else:
        outside = [unshard([f["outside"][n] for f in factors], sequence_dim) for n in range(2)]
    whole = x.clone().requires_grad_()
    expected = dense_block(dense_state([output[0] for output in outputs]), whole, torch.cat(attention, 1), *outside)
    expected.square().sum().backward()
    for rank, (_, y, grad, _) in enumerate(outputs):
        assert len(factors[rank]["outside"]) == 2
        pieces = [t if sequence_dim is None else t.tensor_split(size, 1)[rank] for t in (expected, whole.grad)]
        assert torch.allclose(y, pieces[0], rtol=0, atol=1e-12)
        assert torch.allclose(grad, pieces[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("sequence_dim", [None, 1])
def test_recomputation_repeats_the_masks(sequence_dim, recompute):
    x = torch.randn(BATCH, LENGTH, HIDDEN)
    plain, again = run_block(4, sequence_dim, x), run_block(4, sequence_dim, x, recompute)
    for (block, y, grad, kept), (other, other_y, other_grad, drawn) in zip(plain, again, strict=True):
        assert torch.equal(y, other_y)
        assert torch.equal(grad, other_grad)
        for (name, a), (_, b) in zip(block.named_parameters(), other.named_parameters(), strict=True):
            assert torch.equal(a.grad, b.grad), name
        assert len(drawn["attention"]) == 2, "once forward and once more in the backward"
        assert all(torch.equal(mask, kept["attention"][0]) for mask in drawn["attention"])


def test_replicas_with_other_streams_come_apart():
    """The mistake that this is about: what should be replicated drops other elements on each device."""

    def program(group):
        torch.manual_seed(group.rank)
        return ParallelDropout(0.5, group, sharded=False)(torch.ones(64))

    assert all_differ(Cluster(4).run(program))
