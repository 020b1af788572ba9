"""The embedding and the loss over a split vocabulary equal those of one device, padded or not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parallel.dense_transformer import (  # noqa: F401
    assert_close,
    assert_equals_dense,
    charged,
    double,
    forward_and_backward,
    refuses,
)
from parallel.variants import variant
from torch import nn
from torch.nn import functional as F

from lib import (
    PaddedShard,
    SequenceEmbedding,
    VocabParallelEmbedding,
    mean_loss,
    padded_vocabulary,
    shard,
    unshard,
    vocab_parallel_cross_entropy,
)
from lib.devices import Cluster

SIZES = st.integers(1, 6)
SHAPES = st.sampled_from([(), (5,), (2, 3), (2, 0), (1, 2, 4)])


def test_the_next_multiple():
    assert [padded_vocabulary(50257, parts) for parts in (1, 2, 4, 8)] == [50257, 50258, 50260, 50264]
    assert padded_vocabulary(50304, 8) == 50304


@given(st.integers(1, 9), SIZES)
def test_a_padded_shard(length, parts):
    whole = torch.randn(length, 2)
    pieces = [PaddedShard(length).piece(whole, parts, rank) for rank in range(parts)]
    width = padded_vocabulary(length, parts) // parts
    assert [len(piece) for piece in pieces] == [width] * parts
    assert torch.equal(torch.cat(pieces)[:length], whole)
    assert not torch.cat(pieces)[length:].any()
    assert torch.equal(PaddedShard(length).whole(pieces), whole)


@pytest.mark.parametrize("length", [8, 10])
def test_a_padded_shard_of_another_length(length):
    """8 rows and 3 of padding would give the first three of four devices pieces of the right size."""
    with pytest.raises(ValueError, match=rf"shape \({length}, 3\) does not have the 9 rows to cut"):
        PaddedShard(9).piece(torch.ones(length, 3), 4, 0)


# ---- the embedding ----


def embed(vocabulary, tokens, upstream, group, sequence_dim=None):
    torch.manual_seed(7)
    embedding = variant(VocabParallelEmbedding, sequence_dim)(vocabulary, 3, group)
    y = embedding(tokens)
    y.backward(upstream if sequence_dim is None else shard(upstream, group, sequence_dim))
    return y.detach(), embedding.weight.grad, float(torch.rand(()))


@given(st.integers(1, 15), SIZES, SHAPES, st.integers(0, 99), st.sampled_from([torch.int64, torch.int32]))
def test_the_embedding(more, size, shape, seed, dtype):
    vocabulary = size + more - 1
    torch.manual_seed(seed)
    tokens, upstream = torch.randint(vocabulary, shape, dtype=dtype), torch.randn(*shape, 3)
    torch.manual_seed(7)
    dense = nn.Embedding(vocabulary, 3)
    next_number = float(torch.rand(()))
    dense(tokens).backward(upstream)
    for rank, (y, grad, number) in enumerate(Cluster(size).run(lambda g: embed(vocabulary, tokens, upstream, g))):
        assert torch.equal(y, dense(tokens)), "one device has the row, the others add zeros"
        assert_close(grad, PaddedShard(vocabulary).piece(dense.weight.grad, size, rank), f"rank {rank}")
        assert number == next_number, "the stream goes on where the dense embedding leaves it"


def test_the_embedding_with_sequence_parallelism():
    tokens, upstream = torch.randint(10, (2, 5)), torch.randn(2, 5, 3)
    torch.manual_seed(7)
    dense = nn.Embedding(10, 3)
    dense(tokens).backward(upstream)
    outputs = Cluster(4).run(lambda g: embed(10, tokens, upstream, g, sequence_dim=1))
    assert torch.equal(unshard([output[0] for output in outputs], 1), dense(tokens))
    assert_close(torch.cat([output[1] for output in outputs])[:10], dense.weight.grad, "weight")


def test_what_the_embedding_sends():
    size, tokens = 4, torch.zeros(2, 8, dtype=torch.int64)
    whole = 2 * 8 * 3 * 8
    trip = (size - 1) * whole // size
    plain = forward_and_backward(size, lambda g: VocabParallelEmbedding(10, 3, g)(tokens))
    assert plain == ({"all_reduce": (1, 2 * trip)}, {})
    cut = forward_and_backward(size, lambda g: SequenceEmbedding(10, 3, g)(tokens))
    assert cut == ({"reduce_scatter": (1, trip)}, {"all_gather": (1, trip)})


def test_a_piece_does_not_keep_the_whole_alive():
    sizes = Cluster(4).run(lambda g: VocabParallelEmbedding(8, 3, g).weight.untyped_storage().nbytes())
    assert sizes == [2 * 3 * 8] * 4


# ---- the loss ----


def loss_and_gradient(group, logits, targets, upstream, vocabulary):
    width = padded_vocabulary(vocabulary, group.size) // group.size
    padded = F.pad(logits, (0, width * group.size - vocabulary), value=1e9)  # padding may hold anything
    mine = padded[..., group.rank * width : (group.rank + 1) * width].clone().requires_grad_()
    loss = vocab_parallel_cross_entropy(mine, targets, group, vocabulary)
    loss.backward(upstream)
    return loss.detach(), mine.grad


def assert_loss_equals_dense(size, logits, targets, tolerance=1e-12):
    vocabulary = logits.shape[-1]
    logits, upstream = logits.clone().requires_grad_(), torch.randn(targets.shape)
    expected = F.cross_entropy(logits.reshape(-1, vocabulary), targets.reshape(-1), reduction="none").reshape(
        targets.shape
    )
    expected.backward(upstream)
    cluster = Cluster(size)
    outputs = cluster.run(loss_and_gradient, logits.detach(), targets, upstream, vocabulary)
    for rank, (loss, grad) in enumerate(outputs):
        assert_close(loss, expected.detach(), f"loss on rank {rank}", tolerance)
        assert_close(
            grad, PaddedShard(vocabulary).piece(logits.grad.movedim(-1, 0), size, rank).movedim(0, -1), rank, tolerance
        )
    return cluster


@given(st.integers(1, 15), SIZES, SHAPES, st.integers(0, 99))
def test_the_loss(vocabulary, size, shape, seed):
    torch.manual_seed(seed)
    assert_loss_equals_dense(size, 3 * torch.randn(*shape, vocabulary), torch.randint(vocabulary, shape))


def test_devices_with_nothing_but_padding():
    """Five tokens on four devices: two each, so the third has one and the fourth has none."""
    assert_loss_equals_dense(4, torch.randn(2, 6, 5), torch.arange(12).reshape(2, 6) % 5)


def test_large_logits_do_not_overflow_and_small_ones_do_not_vanish():
    for size in (1, 2, 4):
        for offset in (-1e4, 1e4):
            assert_loss_equals_dense(size, offset + torch.randn(3, 8), torch.tensor([0, 7, 3]), tolerance=1e-10)
        steep = 1e3 * torch.randn(3, 8)  # the largest is on one device, far above those of the others
        assert_loss_equals_dense(size, steep, torch.tensor([0, 7, 3]))


@pytest.mark.parametrize("vocabulary", [8, 5])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_loss_sends_three_numbers_per_token_and_never_the_logits(size, vocabulary):
    targets, width = torch.zeros(2, 6, dtype=torch.int64), padded_vocabulary(vocabulary, size) // size
    forward, backward = forward_and_backward(
        size,
        lambda g: vocab_parallel_cross_entropy(torch.ones(2, 6, width, requires_grad=True), targets, g, vocabulary),
    )
    assert forward == {"all_reduce": (3, 3 * 2 * (size - 1) * 2 * 6 * 8 // size)}
    assert backward == {}


# ---- refusals, types, shapes without data ----


def test_too_few_tokens():
    refuses(
        ["a vocabulary of 3 cannot be split over 4 devices: too few tokens"], lambda g: VocabParallelEmbedding(3, 2, g)
    )
    Cluster(4).run(lambda g: VocabParallelEmbedding(4, 2, g))


@pytest.mark.parametrize("wrong", [-1, 10, 11])  # 10 and 11 are rows of the padding
def test_a_token_outside_of_the_vocabulary(wrong):
    tokens = torch.tensor([[0, 9, wrong]])
    end = f" on rank 0 of 4: token {wrong} is not in a vocabulary of 10; tokens are 0 to 9"
    refuses(["VocabParallelEmbedding" + end], lambda g: VocabParallelEmbedding(10, 2, g)(tokens), error_type=IndexError)
    refuses(
        ["vocab_parallel_cross_entropy" + end],
        lambda g: vocab_parallel_cross_entropy(torch.ones(1, 3, 3), tokens, g, 10),
        error_type=IndexError,
    )


@pytest.mark.parametrize("width", [10, 2, 4])
def test_logits_that_are_not_this_device_s_piece(width):
    fragments = [
        f"vocab_parallel_cross_entropy on rank 0 of 4: logits (1, 2, {width}) are not this device's piece of a "
        "vocabulary of 10: the last dim must be 3"
    ]
    tokens = torch.tensor([[0, 9]])
    refuses(fragments, lambda g: vocab_parallel_cross_entropy(torch.ones(1, 2, width), tokens, g, 10))


def test_float32():
    torch.set_default_dtype(torch.float32)
    logits, targets = torch.randn(4, 9), torch.tensor([0, 8, 4, 5])
    assert_loss_equals_dense(4, logits, targets, tolerance=1e-5)


def test_on_the_meta_device_in_bf16():
    """The whole of GPT-3's logits would take 206 MB; a device has an eighth, and sends some kilobytes."""

    def program(group):
        with torch.device("meta"):
            embedding = VocabParallelEmbedding(50257, 64, group).bfloat16()
            tokens = torch.empty(1, 2048, dtype=torch.int64)
            logits = F.linear(embedding(tokens), embedding.weight)
            loss = vocab_parallel_cross_entropy(logits, tokens, group, 50257)
            mean_loss(loss, tokens).backward()
            return loss.shape, loss.dtype, embedding.weight.grad.shape

    cluster = Cluster(8)
    assert cluster.run(program) == [((1, 2048), torch.bfloat16, (6283, 64))] * 8
    assert charged(cluster) == {"all_reduce": (4, 2 * 7 * (64 * 2 + 2 + 4 + 4) * 2048 // 8)}  # the two sums in float32
