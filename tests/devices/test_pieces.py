"""The one rule by which everything is cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.devices.pieces import cut, shard_sizes

LENGTHS, PARTS = st.integers(0, 40), st.integers(1, 12)


@given(LENGTHS, PARTS)
def test_sizes_are_as_even_as_possible_and_the_larger_come_first(length, parts):
    sizes = shard_sizes(length, parts)
    assert len(sizes) == parts
    assert sum(sizes) == length
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("length", "parts", "sizes"),
    [(6, 4, [2, 2, 1, 1]), (2, 4, [1, 1, 0, 0]), (0, 3, [0, 0, 0]), (8, 4, [2, 2, 2, 2]), (5, 1, [5])],
)
def test_sizes_of_the_examples_in_the_text(length, parts, sizes):
    assert shard_sizes(length, parts) == sizes


@given(st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(0, 2), st.booleans(), PARTS)
def test_cut_is_tensor_split_along_any_dim(shape, dim, negative, parts):
    dim %= len(shape)
    dim = dim - len(shape) if negative else dim
    x = torch.randn(shape)
    pieces = cut(x, parts, dim)
    expected = torch.tensor_split(x, parts, dim)
    assert len(pieces) == parts
    assert all(torch.equal(a, b) for a, b in zip(pieces, expected, strict=True))


def test_cut_makes_views():
    x = torch.zeros(4, 6)
    for number, piece in enumerate(cut(x, 4, 1)):
        piece.fill_(number)
    assert x[0].tolist() == [0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize(("length", "parts"), [(-1, 2), (3, 0), (3, -1)])
def test_impossible_cuts_are_refused(length, parts):
    with pytest.raises(ValueError, match=rf"cannot cut a length of {length} into {parts} pieces.*are needed"):
        shard_sizes(length, parts)
