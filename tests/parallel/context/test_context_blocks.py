"""The list of blocks says what the mask says, no more and no less."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.parallel.context.blocks import Block, blocks_between
from lib.parallel.context.cut import token_places

ORDERS = ["contiguous", "striped", "zigzag"]


def drawn(blocks, rows, columns):
    """How often each (query, key) pair is in a block."""
    counts = torch.zeros(rows, columns, dtype=torch.int64)
    for block in blocks:
        part = counts[block.queries, block.keys]
        if isinstance(block.seen, torch.Tensor):
            part += block.seen
        else:
            part += torch.ones_like(part) if block.seen == "all" else torch.ones_like(part).tril()
    return counts


def mask(at, to, causal, documents):
    seen = at[:, None] >= to[None, :] if causal else torch.ones(len(at), len(to), dtype=torch.bool)
    return seen if documents is None else seen & (documents[at][:, None] == documents[to][None, :])


def rows_of(piece):
    return torch.tensor([i for part in piece for i in part])


@given(
    st.integers(8, 30), st.integers(1, 8), st.sampled_from(ORDERS), st.booleans(), st.integers(1, 4), st.integers(0, 99)
)
def test_blocks_are_the_mask(length, parts, order, causal, texts, seed):
    generator = torch.Generator().manual_seed(seed)
    documents = torch.randint(texts, (length,), generator=generator).sort().values if texts > 1 else None
    pieces = [token_places(length, parts, rank, order) for rank in range(parts)]
    for mine in pieces:
        for theirs in pieces:
            blocks = blocks_between(mine, theirs, causal, documents)
            expected = mask(rows_of(mine), rows_of(theirs), causal, documents)
            assert torch.equal(drawn(blocks, *expected.shape), expected.long())
            assert sum(block.pairs for block in blocks) == int(expected.sum())


def test_a_query_range_inside_of_the_keys_range():
    """Not what a ring meets, but right all the same."""
    blocks = blocks_between((range(2, 5),), (range(0, 8),))
    assert torch.equal(drawn(blocks, 3, 8), mask(torch.arange(2, 5), torch.arange(8), True, None).long())


@pytest.mark.parametrize(
    ("order", "most"),
    [("contiguous", 1), ("striped", 1), ("zigzag", 1)],
)
def test_one_kernel_for_each_hop(order, most):
    pieces = [token_places(64, 4, rank, order) for rank in range(4)]
    assert max(len(blocks_between(mine, theirs)) for mine in pieces for theirs in pieces) == most


@pytest.mark.parametrize("other", [1, 3])
def test_zigzag_skips_half(other):
    """Earlier keys: the first half of them, for all queries. Later ones: all of them, for the last half of queries."""
    pieces = [token_places(32, 4, rank, "zigzag") for rank in range(4)]
    (block,) = blocks_between(pieces[2], pieces[other])
    half = slice(0, 4) if other < 2 else slice(4, 8)
    assert block == (Block(slice(0, 8), half, "all") if other < 2 else Block(half, slice(0, 8), "all"))


def test_packed_documents_skip_what_is_in_none_of_theirs():
    documents = torch.tensor([0] * 8 + [1] * 8)
    first, second = token_places(16, 2, 0, "contiguous"), token_places(16, 2, 1, "contiguous")
    assert blocks_between(second, first, True, documents) == ()
    (block,) = blocks_between(second, second, True, documents)
    assert block.seen == "triangle", "one document: no mask is needed"
