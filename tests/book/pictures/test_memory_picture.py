"""Memory over time: the areas are the bytes."""

import re
from xml.etree import ElementTree

import pytest

from book import draw_memory
from book.pictures.memory import LEFT, LOW, RIGHT, TALL
from lib.devices import Trace
from lib.devices.memory import Held
from lib.devices.trace import Event


@pytest.fixture
def trace():
    trace = Trace(2)
    trace.events.append(Event(0, "compute", "mm", 0.0, 10.0))
    trace.memory += [
        Held(0, "parameters", "w", 100, 0.0, 10.0),
        Held(0, "activations", "mm", 300, 2.0, 6.0),
        Held(0, "gradients", "mm", 100, 5.0, 10.0),
        Held(1, "buffers", "mm", 999, 0.0, 1.0),
    ]
    return trace


def areas(picture):
    """kind -> [(height, x where it ends)] of each step, from the drawing alone."""
    found = {}
    for node in ElementTree.fromstring(picture.svg()).iter():
        if "data-kind" in node.attrib:
            bottom = float(re.match(r"M\d+ ([\d.]+)", node.get("d"))[1])
            steps = re.findall(r"V([\d.]+)H([\d.]+)", node.get("d"))
            found[node.get("data-kind")] = [(bottom - float(v), float(h)) for v, h in steps]
    return found


def test_areas_are_bytes(trace):
    drawn = areas(draw_memory(trace))
    assert set(drawn) == {"all", "parameters", "activations", "gradients"}

    def x(time):
        return LEFT + (RIGHT - LEFT) * time / 10

    def close(steps):
        return [pytest.approx(step, abs=0.11) for step in steps]

    unit = TALL / 500
    heights = [(100, 2), (400, 5), (500, 6), (200, 10), (0, 10)]
    assert drawn["all"] == close([(unit * size, x(time)) for size, time in heights])
    assert drawn["activations"] == close([(0, x(2)), (LOW, x(6)), (0, x(10))])
    assert drawn["parameters"] == close([(LOW / 3, x(10)), (0, x(10))])


def test_a_common_scale(trace):
    whole, half = areas(draw_memory(trace)), areas(draw_memory(trace, most=1000))
    assert max(half["all"])[0] == pytest.approx(max(whole["all"])[0] / 2, abs=0.1)
    with pytest.raises(ValueError, match="below the peak of rank 0, 500 bytes"):
        draw_memory(trace, most=499)


def test_words(trace):
    picture = draw_memory(trace, title="A step")
    assert picture.desc == (
        "A step of rank 0: at most 500 B in all. "
        "The most of each kind: parameters 100 B, gradients 100 B, activations 300 B."
    )


def test_nothing_held():
    trace = Trace(1)
    trace.events.append(Event(0, "compute", "mm", 0.0, 1.0))
    with pytest.raises(ValueError, match="rank 0 held no memory"):
        draw_memory(trace)
