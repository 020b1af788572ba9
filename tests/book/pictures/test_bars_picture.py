"""Bars: lengths are numbers, on the scale that was asked for."""

from xml.etree import ElementTree

import pytest

from book import draw_bars
from book.pictures.bars import LOOKS
from book.pictures.kit.language import paint


def drawn(picture):
    """(part, value, x, width, fill) of every bar, from the drawing alone."""
    return [
        (
            node.get("data-part"),
            float(node.get("data-value")),
            *(float(node.get(k)) for k in ("x", "width")),
            node.get("fill"),
        )
        for node in ElementTree.fromstring(picture.svg()).iter()
        if "data-value" in node.attrib
    ]


def test_two_states_on_one_scale_can_be_compared():
    lengths = [drawn(draw_bars({"a": value}, "T", most=100))[0][3] for value in (100, 25)]
    assert lengths[0] / lengths[1] == pytest.approx(4, rel=0.01)
    alone = [drawn(draw_bars({"a": value}, "T"))[0][3] for value in (100, 25)]
    assert alone[0] / alone[1] < 1.1  # without a common scale nothing shrinks


def test_parts_stand_one_after_the_other_in_colors_of_their_own():
    picture = draw_bars({"TP": {"sharded": 30, "replicated": 10}, "SP": {"sharded": 20}}, "T", "GB")
    (_, _, x, width, fill), (_, _, after, more, outline), (_, _, start, _, _) = drawn(picture)
    assert (after, start) == (pytest.approx(x + width), x)
    assert width / more == pytest.approx(3, rel=0.02)
    assert (fill, outline) == (LOOKS["sharded"]["fill"], "none")
    assert "TP: 40 GB (sharded 30, replicated 10); SP: 20 GB (sharded 20)." in picture.desc
    other = drawn(draw_bars({"x": {"one": 1, "two": 2}}, "T"))
    assert [fill for *_, fill in other] == [paint(0).fill, paint(1).fill]


def test_a_limit_is_where_its_value_would_end():
    picture = draw_bars({"a": 80, "b": 120}, "T", limit=(80, "80 GB"))
    (line,) = [n for n in ElementTree.fromstring(picture.svg()).iter() if "data-limit" in n.attrib]
    _, _, x, width, _ = drawn(picture)[0]
    assert float(line.get("d")[1:].split()[0]) == pytest.approx(x + width, abs=0.2)
    assert "The line: 80 GB." in picture.desc


def test_a_bar_beyond_the_scale_is_cut_off():
    (_, _, x, width, _), (_, _, _, longer, _) = drawn(draw_bars({"a": 100, "b": 400}, "T", most=100))
    assert longer == width


@pytest.mark.parametrize("value", [-1, float("inf"), {"part": -1}])
def test_refuses(value):
    with pytest.raises(ValueError, match="finite and not negative"):
        draw_bars({"a": value}, "T")


def test_the_line_of_the_limit_crosses_no_number():
    picture = draw_bars({"long": 400, "just below": 60, "at": 80, "short": 3}, "T", "GB", limit=(80, "80 GB"))
    nodes = list(ElementTree.fromstring(picture.svg()).iter())
    (line,) = [float(n.get("d")[1:].split()[0]) for n in nodes if "data-limit" in n.attrib]
    numbers = {
        n.text: float(n.get("x")) for n in nodes if n.text in ("400 GB", "60 GB", "80 GB", "3 GB") and n.get("x")
    }
    assert numbers["60 GB"] > line > drawn(picture)[1][2]  # moved behind it
    assert not [text for text, x in numbers.items() if x < line < x + 7.6 * len(text) and text != "80 GB"], numbers


@pytest.mark.parametrize("longest", ["short", "queries, keys, values"])
def test_names_in_the_legend_leave_room_for_the_next(longest):
    names = [longest, "logits", "MLP", "visiting keys", "one more"]
    picture = draw_bars({"a": dict.fromkeys(names, 1)}, "T")
    places = {
        node.text: (float(node.get("x")), float(node.get("y")))
        for node in ElementTree.fromstring(picture.svg()).iter()
        if node.text in names
    }
    assert max(y for _, y in places.values()) < picture.height
    for name, (x, y) in places.items():
        rest = [other - 32 for other, line in places.values() if line == y and other > x]  # a swatch stands before it
        assert x + 6.7 * len(name) < min(rest, default=picture.width)
