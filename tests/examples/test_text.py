"""The text that comes with the book, as tokens and as batches."""

import pytest
import torch

from lib.examples.text import Text, alice

TEXT = Text("ab c", torch.tensor([0, 1, 2, 3, 0, 1, 2]))


def test_alice_is_whole_and_comes_back():
    text = alice()
    assert text.decode(text.tokens[:40]).lstrip().startswith("ALICE'S ADVENTURES IN WONDERLAND")
    assert text.decode(text.encode("Down the Rabbit-Hole")) == "Down the Rabbit-Hole"
    assert text.vocabulary == len(set(text.characters)) == len(text.tokens.unique())


def test_what_the_text_never_has_is_named():
    with pytest.raises(ValueError, match="'x', 'z'"):
        TEXT.encode("axbz")


def test_targets_are_the_next_tokens_and_every_device_draws_the_same():
    drawn = list(TEXT.batches(5, batch=3, length=4, seed=1))
    assert len(drawn) == 5
    pieces = {tuple(TEXT.tokens[i : i + 5].tolist()) for i in range(3)}
    for tokens, targets in drawn:
        assert tokens.shape == targets.shape == (3, 4)
        for row, follows in zip(tokens.tolist(), targets.tolist(), strict=True):
            assert (*row, follows[-1]) in pieces
            assert row[1:] == follows[:-1]
    again = list(TEXT.batches(5, batch=3, length=4, seed=1))
    assert all(torch.equal(a, b) for one, two in zip(drawn, again, strict=True) for a, b in zip(one, two, strict=True))
    other = list(TEXT.batches(5, batch=3, length=4, seed=2))
    assert any(not torch.equal(one[0], two[0]) for one, two in zip(drawn, other, strict=True))


def test_a_text_of_just_one_piece_more():
    ((tokens, targets),) = TEXT.batches(1, batch=2, length=6)
    assert tokens.tolist() == [TEXT.tokens[:6].tolist()] * 2
    assert targets.tolist() == [TEXT.tokens[1:].tolist()] * 2


def test_pieces_longer_than_the_text():
    with pytest.raises(ValueError, match="pieces of 7 tokens do not fit into a text of 7"):
        next(TEXT.batches(1, batch=2, length=7))
