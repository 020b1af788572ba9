"""Charts: the points are where they belong, the words tell who is lowest."""

import re
from xml.etree import ElementTree

import pytest

from book import draw_chart
from book.pictures.chart import BOTTOM, LEFT, TOP
from book.pictures.kit.axis import log_ticks, readable, ticks


def lines(picture):
    return {
        node.get("data-line"): [
            tuple(map(float, pair)) for pair in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", node.get("d"))
        ]
        for node in ElementTree.fromstring(picture.svg()).iter()
        if "data-line" in node.attrib
    }


def texts(picture):
    return [node for node in ElementTree.fromstring(picture.svg()).iter() if node.tag.endswith("text")]


def test_points_on_linear_axes():
    drawn = lines(draw_chart({"loss": [(0, 4), (5, 1), (10, 2)]}, "Loss", "step", "loss"))["loss"]
    (x0, y0), (x1, y1), (x2, y2) = drawn
    assert (x0, y0) == (LEFT, TOP)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert (BOTTOM - y1, BOTTOM - y2) == pytest.approx(((BOTTOM - TOP) / 4, (BOTTOM - TOP) / 2), abs=0.11)


def test_points_on_logarithmic_axes():
    picture = draw_chart({"time": [(1, 1e-6), (10, 1e-4), (1000, 1e-3)]}, "T", "x", "y", ("B", "s"), log=True)
    (x0, y0), (x1, y1), (x2, y2) = lines(picture)["time"]
    assert (y0, y2) == (BOTTOM, TOP)
    assert (x1 - x0) * 3 == pytest.approx(x2 - x0, abs=0.4)
    assert (y0 - y1) * 3 == pytest.approx((y0 - y2) * 2, abs=0.4)
    assert {"1 B", "10 B", "1 kB", "1 µs", "100 µs", "1 ms"} <= {node.text for node in texts(picture)}


def test_a_phone_shows_the_names_at_the_right_end():
    """A window of 390 has a column of 358, in which `_assets/book.js` shrinks no picture below 0.85."""
    picture = draw_chart({"a name of a line": [(0, 1), (1, 2)]}, "T", "x", "y")
    assert 0.85 * picture.width <= 358
    (name,) = (node for node in texts(picture) if node.text == "a name of a line")
    assert float(name.get("x")) + 6.7 * len(name.text) <= picture.width


def test_names_of_lines_do_not_touch():
    picture = draw_chart({f"line {i}": [(0, 0), (1, 1 + i / 1000)] for i in range(6)}, "T", "x", "y")
    places = sorted(float(node.get("y")) for node in texts(picture) if node.text.startswith("line"))
    assert min(b - a for a, b in zip(places, places[1:], strict=False)) >= 14.9
    assert places[0] > 0
    assert places[-1] < picture.height


def test_lines_differ_by_more_than_color():
    svg = draw_chart({f"line {i}": [(0, 0), (1, i)] for i in range(6)}, "T", "x", "y").svg()
    looks = re.findall(r'stroke-width="([\d.]+)"(?: stroke-dasharray="([\d ]+)")? data-line', svg)
    assert len(set(looks)) == 6


def test_the_words_say_who_is_lowest_where():
    points = {"ring": [(1, 5), (10, 6), (100, 7)], "tree": [(1, 1), (10, 4), (100, 70)]}
    desc = draw_chart(points, "All-reduce", "bytes", "time", ("B", "s"), note="no contention").desc
    assert desc == (
        "All-reduce. time over bytes. ring goes from 5 s to 7 s; tree goes from 1 s to 70 s. "
        "Lowest from 1 B to 10 B: tree; at 100 B: ring. no contention"
    )
    assert "loss goes from 3 to 0.5" in draw_chart({"loss": [(0, 3), (1, 0.5)]}, "L", "x", "y").desc


def test_curves_that_differ_by_rounding_are_told_as_equal():
    one, eps = [(0, 4.0), (1, 3.0), (2, 2.0)], 2e-16
    points = {"one": one, "four": [(0, 4.0), (1, 3.0 - 3 * eps), (2, 2.0 + 2 * eps)], "bug": [(0, 4.0), (1, 5), (2, 6)]}
    desc = draw_chart(points, "Loss", "step", "loss").desc
    assert desc.endswith("Lowest at 0: one, four and bug; from 1 to 2: one and four.")


@pytest.mark.parametrize("crossings", [3, 4])
def test_curves_that_cross_all_the_time_are_told_by_their_ends_alone(crossings):
    points = {"a": [(i, 2 + i % 2) for i in range(crossings + 1)], "b": [(i, 3 - i % 2) for i in range(crossings + 1)]}
    desc = draw_chart(points, "Loss", "step", "loss").desc
    assert ("Lowest" in desc) == (crossings == 3)
    assert desc.startswith(f"Loss. loss over step. a goes from 2 to {2 + crossings % 2}; b goes from 3 to")


def test_a_flat_line_can_be_drawn():
    assert lines(draw_chart({"one": [(0, 2), (1, 2)]}, "T", "x", "y"))


@pytest.mark.parametrize(
    ("given", "log", "says"),
    [
        ({}, False, "1 to 6 lines, not 0"),
        ({str(i): [(0, 1), (1, 1)] for i in range(7)}, False, "not 7"),
        ({"a": [(0, 1)]}, False, "'a' has 1 point"),
        ({"a": [(0, 1), (1, float("nan"))]}, False, "'a' has the point (1, nan)"),
        ({"a": [(0, 1), (1, 1)]}, True, "on logarithmic axes"),
    ],
)
def test_bad_input(given, log, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        draw_chart(given, "T", "x", "y", log=log)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.5e-5, "s", "25 µs"),
        (0.0, "s", "0 s"),
        (1e9, "B", "1 GB"),
        (1234567, "B", "1.23 MB"),
        (0.5, "", "0.5"),
        (1500, "", "1,500"),
        (8192, "", "8,192"),
        (999_999, "", "999,999"),
        (1234.5, "", "1,230"),
        (2**20, "", "1.05M"),
        (-8.03e9, "", "-8.03B"),
        (15e12, "", "15T"),
        (999_999.9, "", "1M"),
        (0, "", "0"),
    ],
)
def test_readable(value, unit, text):
    assert readable(value, unit) == text


def test_ticks_are_round_and_few():
    for end in 3e-6, 0.7, 42, 9.99e8:
        marks, name = ticks(end, "s", 4)
        assert marks[0] == 0
        assert marks[-1] <= end
        assert 3 <= len(marks) <= 6
        assert name(0) == "0"
    assert log_ticks(1, 1e6, 10) == [10.0**i for i in range(7)]
    assert len(log_ticks(1, 1e12, 5)) <= 7


def test_numbers_below_zero_have_marks():
    svg = draw_chart({"right": [(1, -15.0), (2, -14.5)], "wrong": [(1, -15.0), (2, -3.4)]}, "t", "layer", "power").svg()
    assert all(f">{mark}<" in svg for mark in ("-14", "-10", "-4")), svg


def test_an_axis_that_begins_far_from_0_has_marks_all_along():
    drawn = draw_chart({"loss": [(30, 1.0), (59, 0.5)]}, "T", "x", "y")
    assert {"30", "40", "50"} <= {node.text for node in ElementTree.fromstring(drawn.svg()).iter()}
