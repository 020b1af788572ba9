"""The timeline: bars where the events are, as long as they took, and few of them."""

import re
from xml.etree import ElementTree

import pytest
import torch

from book import draw_timeline
from book.pictures.timeline import LEFT, RIGHT, merged
from lib.devices import Cluster, Event, Hardware, Link, Trace

TOY = Hardware("toy", 1e30, 1.0, 1e9, Link(10.0, 1e30))  # a byte of memory takes a second, a message ten


def bars(picture):
    """(rank, kind, x, width) of every bar, from the drawing alone."""
    found = []
    for node in ElementTree.fromstring(picture.svg()).iter():
        if "data-kind" in node.attrib:
            rank, kind = int(node.get("data-rank")), node.get("data-kind")
            if kind == "waiting":
                x, width = map(float, re.match(r"M([\d.]+) [\d.]+h([\d.]+)", node.get("d")).groups())
            else:
                rect = next(child for child in node if child.tag.endswith("rect"))
                x, width = float(rect.get("x")), float(rect.get("width"))
            found.append((rank, kind, x, width))
    return found


def texts(picture):
    return [node.text for node in ElementTree.fromstring(picture.svg()).iter() if node.tag.endswith("text")]


def program(group):
    if group.rank == 0:
        torch.zeros(25, dtype=torch.int8) + 0  # zeros: 25 s; +: 50 s
    group.barrier()


@pytest.fixture
def trace():
    cluster = Cluster(2, hardware=TOY)
    cluster.run(program)
    return cluster.trace


def test_bars_stand_where_the_events_are(trace):
    scale = (RIGHT - LEFT) / trace.seconds
    assert trace.seconds == 85
    drawn = bars(draw_timeline(trace))
    expected = [
        (0, "compute", LEFT, 25 * scale),
        (0, "compute", LEFT + 25 * scale, 50 * scale),
        (0, "communication", LEFT + 75 * scale, 10 * scale),
        (1, "waiting", LEFT, 75 * scale),
        (1, "communication", LEFT + 75 * scale, 10 * scale),
    ]
    assert [bar[:2] for bar in drawn] == [bar[:2] for bar in expected]
    for bar, right in zip(drawn, expected, strict=True):
        assert bar[2:] == pytest.approx(right[2:], abs=0.1)


def test_words(trace):
    picture = draw_timeline(trace, title="Two devices")
    assert {"Two devices", "85 s in all", "zeros", "add", "rank 0", "rank 1", "computing", "waiting"} <= set(
        texts(picture)
    )
    assert picture.desc == (
        "Two devices: 2 devices, 85 s in all. "
        "Shares of time: computing 0% to 88%, communicating 12%, waiting 0% to 88%."
    )


def test_a_common_scale_makes_two_pictures_comparable(trace):
    wide = {bar[:3]: bar[3] for bar in bars(draw_timeline(trace))}
    half = {bar[:2]: bar[3] for bar in bars(draw_timeline(trace, until=170))}
    assert half[1, "waiting"] == pytest.approx(
        next(w for bar, w in wide.items() if bar[:2] == (1, "waiting")) / 2, abs=0.1
    )
    with pytest.raises(ValueError, match="before the end"):
        draw_timeline(trace, until=80)


def test_the_name_of_the_last_mark_stays_in_the_picture(trace):
    picture = draw_timeline(trace, until=400.0)
    marks = [node for node in ElementTree.fromstring(picture.svg()).iter() if (node.text or "") in ("300 s", "400 s")]
    assert [float(mark.get("x")) + 6.5 * len(mark.text) / 2 <= picture.width for mark in marks] == [True, True]
    assert float(marks[0].get("x")) == pytest.approx(LEFT + (RIGHT - LEFT) * 300 / 400, abs=0.1)


def test_communication_that_overlaps_has_its_own_track():
    def overlapping(group):
        handle = group.all_reduce(torch.zeros(1), async_op=True)
        torch.zeros(1, dtype=torch.int8)
        handle.wait()

    cluster = Cluster(2, hardware=TOY)
    cluster.run(overlapping)
    tops = {
        node.get("data-kind"): float(next(c for c in node if c.tag.endswith("rect")).get("y"))
        for node in ElementTree.fromstring(draw_timeline(cluster.trace).svg()).iter()
        if node.get("data-rank") == "0" and node.get("data-kind") in ("compute", "communication")
    }
    assert tops["communication"] > tops["compute"]
    assert draw_timeline(cluster.trace).desc.endswith(", some of it at the same time.")


def test_thousands_of_events_make_a_small_picture():
    trace = Trace(1)
    for i in range(20_000):
        trace.events.append(Event(0, "compute", f"op{i % 3}", i * 1.0, i + 0.9 - i % 3 / 10))
    picture = draw_timeline(trace)
    assert len(picture.svg()) < 5_000
    ((_, _, x, width),) = bars(picture)
    assert (x, x + width) == pytest.approx((LEFT, RIGHT), abs=0.2)
    assert "op0, op1, op2" in texts(picture)


def test_bars_apart_stay_apart():
    events = [
        Event(0, "compute", "a", 0.0, 1.0),
        Event(0, "compute", "b", 5.0, 6.0),
        Event(0, "compute", "c", 6.0, 6.0),
    ]
    assert [bar.times for bar in merged(events, 0.5)] == [{"a": 1.0}, {"b": 1.0}]
    assert [bar.times for bar in merged(events, 4.5)] == [{"a": 1.0, "b": 1.0}]


@pytest.mark.parametrize(
    ("seconds", "until", "told"),
    [
        ({"copy_": 30, "mm": 60, "_softmax": 10}, 100, "mm, copy, softmax"),
        ({"copy_": 30, "copy": 30, "mm": 40}, 100, "copy, mm"),
        ({"copy_": 30, "mm": 60, "add": 10}, 600, "mm, copy"),
        ({"copy_": 30, "mm": 60, "add": 10}, 1400, "mm"),
        ({"copy_": 30, "mm": 40, "add": 30}, 1400, None),  # most of the bar is something else
        ({"native_layer_norm_backward": 90, "mm": 10}, 700, None),
    ],
)
def test_a_bar_is_named_after_what_took_its_time(seconds, until, told):
    trace = Trace(1)
    for name, count in seconds.items():
        for now in range(len(trace.events), len(trace.events) + count):  # too short to be told apart
            trace.events.append(Event(0, "compute", name, float(now), now + 1.0))
    inside = [
        node.findtext("{*}text")
        for node in ElementTree.fromstring(draw_timeline(trace, until=until).svg()).iter()
        if "data-kind" in node.attrib
    ]
    assert inside == [told]


def test_more_devices_than_lanes():
    trace = Trace(11)
    trace.events += [Event(rank, "compute", "mm", 0.0, 1.0) for rank in range(11)]
    picture = draw_timeline(trace)
    assert {bar[0] for bar in bars(picture)} == set(range(8))
    assert "3 more devices are not drawn" in texts(picture)


def test_a_failed_run_is_drawn_up_to_its_failure():
    def fails(group):
        torch.zeros(4, dtype=torch.int8)
        if group.rank == 1:
            raise ValueError("stop")
        group.barrier()

    cluster = Cluster(2, hardware=TOY)
    with pytest.raises(ValueError, match="stop"):
        cluster.run(fails)
    assert [bar[:2] for bar in bars(draw_timeline(cluster.trace))] == [(0, "compute"), (1, "compute")]


def test_an_empty_trace_has_nothing_to_draw():
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_timeline(Trace(2))
