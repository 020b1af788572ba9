"""Pictures of moves: every device holds what its kind says, and the bytes are those of the table."""

import pytest

from book import draw_move
from lib import MOVES


@pytest.mark.parametrize("name", MOVES)
def test_both_directions_are_told(name):
    picture = draw_move(name, 4)
    head, forward, backward = picture.desc.rstrip(".").split(". ")
    assert head == f"{name} on 4 devices"
    for text, verb, sent in zip(
        (forward, backward), (MOVES[name].forward, MOVES[name].backward), MOVES[name].bytes(100, 4), strict=True
    ):
        if verb is None:
            assert text.endswith("nothing is sent")
        else:
            assert text.endswith(f"by {verb.replace('_', '-')}: each of 4 devices sends {sent:.0f} % of the whole")


def test_f_and_g_are_mirrors():
    f, g = draw_move("copy_to", 2).desc, draw_move("reduce_from", 2).desc
    assert "value goes from Replicate to Replicate, nothing" in f
    assert "gradient goes from Partial to Replicate by all-reduce" in f
    assert "value goes from Partial to Replicate by all-reduce" in g
    assert "gradient goes from Replicate to Replicate, nothing" in g


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="there is no move 'send'"):
        draw_move("send", 2)
    with pytest.raises(ValueError, match="9 devices"):
        draw_move("copy_to", 9)
