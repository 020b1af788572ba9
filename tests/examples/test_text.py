"""The text that comes with the book, as tokens and as batches."""

import pytest
import torch

from lib.examples.text import Bytes, Characters, Pieces, Text, alice, alice_text, coded, read_text

TEXT = Text(Characters("ab c"), torch.tensor([0, 1, 2, 3, 0, 1, 2]))


def test_alice_is_whole_and_comes_back():
    text = alice()
    assert text.decode(text.tokens[:40]).lstrip().startswith("ALICE'S ADVENTURES IN WONDERLAND")
    assert text.decode(text.encode("Down the Rabbit-Hole")) == "Down the Rabbit-Hole"
    assert text.vocabulary == len(set(alice_text())) == len(text.tokens.unique())


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


WORDS = "Zoé said: \u201cthe cat\u201d, the cat, the cat!\n" * 9


@pytest.mark.parametrize("coding", [Bytes(), Pieces.learned(WORDS, 270)], ids=["bytes", "pieces"])
def test_any_text_has_its_bytes_and_pieces(coding):
    text = coded(WORDS, coding)
    assert text.decode(text.tokens) == WORDS
    assert int(text.tokens.max()) < text.vocabulary
    assert text.decode(text.encode("ß is not in it")) == "ß is not in it"


def test_bytes_are_bytes_and_pieces_are_fewer():
    assert coded("é", Bytes()).tokens.tolist() == [0xC3, 0xA9]
    assert Bytes().words([0xC3]) == "\ufffd"
    assert len(coded(WORDS, Pieces.learned(WORDS, 270)).tokens) < len(WORDS) * 2 / 3
    with pytest.raises(ValueError, match="a vocabulary of 256 pieces: it begins with the 256 bytes"):
        Pieces.learned(WORDS, 256)


def test_the_end_of_a_text_is_for_tests():
    first, last = TEXT.split(0.3)
    assert (first.tokens.tolist(), last.tokens.tolist()) == ([0, 1, 2, 3, 0], [1, 2])
    assert [len(some.tokens) for some in TEXT.split(0.0)] == [7, 0]


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b").write_text("")
    with pytest.raises(ValueError, match="a is no text in UTF-8"):
        read_text(tmp_path / "a")
    with pytest.raises(ValueError, match="b is empty"):
        read_text(tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "c")
