"""Which tokens each device holds: all of them, once, and in the order that the cut promises."""

import pytest
import torch
from devices.messages import says
from hypothesis import given
from hypothesis import strategies as st

from lib import Shard
from lib.parallel.context.cut import CutTokens, token_places

ORDERS = st.sampled_from(["contiguous", "striped", "zigzag"])


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 4), ORDERS)
def test_every_token_is_on_one_device(length, rings, inner, order):
    parts = rings * inner
    if length < parts:
        with says(ValueError, f"a sequence of {length} tokens cannot be cut over {parts} devices"):
            token_places(length, parts, 0, order, inner)
        return
    each = [token_places(length, parts, rank, order, inner) for rank in range(parts)]
    rows = [[i for part in piece for i in part] for piece in each]
    assert sorted(i for piece in rows for i in piece) == list(range(length))
    assert all(piece == sorted(piece) for piece in rows)
    lengths = [len(piece) for piece in rows]
    assert min(lengths) >= 1 or order == "zigzag" or inner > 1
    assert max(lengths) - min(lengths) <= 2


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("contiguous", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("striped", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("zigzag", [[0, 1, 6, 7], [2, 3, 4, 5]]),
    ],
)
def test_eight_tokens_on_two_devices(order, expected):
    assert [[i for part in token_places(8, 2, rank, order) for i in part] for rank in range(2)] == expected


@given(st.integers(8, 30), st.integers(1, 8), ORDERS, st.sampled_from([1, 2]))
def test_pieces_make_the_whole_again(length, parts, order, inner):
    if parts % inner:
        return
    x, cut = torch.randn(2, length, 3), CutTokens(order, -2 if length % 2 else 1, inner)
    assert torch.equal(cut.whole([cut.piece(x, parts, rank) for rank in range(parts)]), x)


def test_contiguous_is_shard():
    x = torch.randn(2, 11)
    for rank in range(4):
        assert torch.equal(CutTokens("contiguous", 1).piece(x, 4, rank), Shard(1).piece(x, 4, rank))


def test_two_cuts_one_in_the_other():
    """Two rings, zigzag, and in each two neighbors."""
    assert [token_places(16, 4, rank, "zigzag", 2) for rank in range(4)] == [
        (range(0, 4),), (range(12, 16),), (range(4, 8),), (range(8, 12),)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((8, 2, 0, "zig-zag"), "order='zig-zag' must be one of 'contiguous', 'striped', 'zigzag'"),
        ((8, 3, 0, "zigzag", 2), "3 devices cannot be laid out in rows of 2: it must divide 3"),
    ],
)
def test_refused(arguments, words):
    with says(ValueError, words):
        token_places(*arguments)


DOCUMENTS = st.lists(st.integers(1, 20), min_size=1, max_size=6).map(tuple)


@given(DOCUMENTS, st.integers(1, 5))
def test_documents_are_cut_each_by_itself(lengths, parts):
    length = sum(lengths)
    if length < parts:
        return
    each = [token_places(length, parts, rank, lengths) for rank in range(parts)]
    rows = [[i for part in piece for i in part] for piece in each]
    assert sorted(i for piece in rows for i in piece) == list(range(length))
    assert all(piece == sorted(piece) for piece in rows)
    x, cut = torch.randn(length, 2), CutTokens(lengths, 0)
    assert torch.equal(cut.whole([cut.piece(x, parts, rank) for rank in range(parts)]), x)


def test_two_documents_on_two_devices():
    each = [token_places(10, 2, rank, (5, 5)) for rank in range(2)]
    # Of 5 tokens over 4 stretches the first is longer: it is on rank 0 in the first document, on rank 1 in the second.
    assert [[i for part in piece for i in part] for piece in each] == [[0, 1, 4, 7, 8], [2, 3, 5, 6, 9]]


@pytest.mark.parametrize("lengths", [(), (3, 4), (8, 0)], ids=str)
def test_documents_of_other_lengths_are_refused(lengths):
    with says(ValueError, f"documents of these lengths have {sum(lengths)} tokens", "the 8 of the sequence"):
        token_places(8, 2, 0, lengths)
