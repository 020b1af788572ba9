"""Lanes and moments of a pipeline: boxes where the clock has them, areas as high as what is held."""

import re
import time
from xml.etree import ElementTree

import pytest

from book import draw_moment, draw_schedule
from book.pictures.pipeline import HELD, LEFT, RIGHT
from book.pictures.pipeline_moment import hands_at
from lib import Backward, Forward, Times, dual_pipe_v, gpipe, interleaved, naive, one_f_one_b, timeline, zb_h1, zb_v


def nodes(picture, attribute):
    return [node for node in ElementTree.fromstring(picture.svg()).iter() if attribute in node.attrib]


def boxes(picture):
    """(device, kind) -> (x, width) of each box."""
    found = {}
    for group in nodes(picture, "data-kind"):
        at, mine = float(re.match(r"translate\(([\d.]+) ", group.get("transform"))[1]), []
        scale = float(re.match(r"scale\(([\d.]+) ", group[0].get("transform"))[1])
        for move, width in re.findall(r"m([\d.]+) 0h([\d.]+)", group[0].get("d")):
            at += scale * float(move)  # a box begins where the last one began, and a step to the right
            mine.append((at, scale * float(width)))
        found[int(group.get("data-rank")), group.get("data-kind")] = mine
    return found


def test_boxes_stand_where_the_clock_has_them():
    schedule = zb_h1(3, 4)
    scale = (RIGHT - LEFT) / 20
    drawn = boxes(draw_schedule(schedule, until=20))
    letters = {"F": "F", "I": "B", "W": "W"}
    for device, lane in enumerate(timeline(schedule)):
        for kind in "FIW":
            expected = [(LEFT + s.start * scale, (s.end - s.start) * scale) for s in lane if s.step.letter == kind]
            for mine, right in zip(drawn[device, letters[kind]], expected, strict=True):
                assert mine == pytest.approx(right, abs=0.1)


def test_every_box_has_its_number_where_there_is_room():
    text = "".join(
        node.itertext() and "".join(node.itertext()) for node in nodes(draw_schedule(gpipe(1, 3)), "data-kind")
    )
    assert text == "012012"
    crowded = draw_schedule(gpipe(1, 3), until=1000)
    assert not "".join("".join(node.itertext()) for node in nodes(crowded, "data-kind"))


def test_areas_are_as_high_as_what_is_held():
    picture = draw_schedule(one_f_one_b(4, 8), most=8)
    for device, node in enumerate(nodes(picture, "data-held")):
        levels = [float(level) for level in re.findall(r"V([\d.]+)", node.get("d"))]
        assert (max(levels), min(levels)) == (4 - device, 0)
        risen = levels[0] if device == 0 else levels[1]  # the first device holds something from the beginning on
        assert risen == 1
        assert float(re.search(r"scale\(\S+ (\S+)\)", node.get("transform"))[1]) == -HELD / 8


def test_words():
    picture = draw_schedule(one_f_one_b(4, 8))
    assert picture.desc == (
        "1F1B, 8 micro-batches on 4 devices in 4 stages: the slowest device takes 33 and works 24. Idle: 37.5% of the "
        "work, 27.3% of the time. Micro-batches held at most, by device: 4, 3, 2, 1."
    )
    shown = "".join(ElementTree.fromstring(picture.svg()).itertext())
    assert "idle: 38% of the work" in shown
    assert "weights' half" not in shown
    assert "weights' half" in "".join(ElementTree.fromstring(draw_schedule(zb_h1(2, 2)).svg()).itertext())


def test_later_stages_of_a_device_are_marked():
    marked = nodes(draw_schedule(interleaved(2, 2, 2)), "data-chunk")
    assert [node.get("d").count("M") for node in marked] == [2] * 4, "two micro-batches, on two devices, there and back"
    assert not nodes(draw_schedule(gpipe(2, 2)), "data-chunk")


def test_two_pictures_on_one_scale():
    with pytest.raises(ValueError, match="GPipe takes 33 and holds 8"):
        draw_schedule(gpipe(4, 8), until=30)
    with pytest.raises(ValueError, match="most=4"):
        draw_schedule(gpipe(4, 8), most=4)


def test_64_stages_and_512_micro_batches_in_two_seconds():
    schedule = one_f_one_b(64, 512)
    assert schedule.chunks == 1
    timeline(one_f_one_b(2, 2))
    seconds = []
    for _ in range(2):  # a machine may be slow for a moment
        start = time.process_time()
        picture = draw_schedule(schedule)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 2
    assert len(picture.svg()) < 250_000
    assert "56 more devices are not drawn" in picture.svg()


@pytest.mark.parametrize("make", [naive, gpipe, one_f_one_b, zb_h1, zb_v, dual_pipe_v])
def test_what_is_in_the_hands_of_a_device_agrees_with_the_clock(make):
    """At any time: what is kept has had its forward and not its backward, what came in was made and not used."""
    schedule = make(3, 6)
    lanes = timeline(schedule)
    ends = {slot.step: slot for lane in lanes for slot in lane}
    for now in range(0, int(max(lane[-1].end for lane in lanes)) + 1):
        for device, hands in enumerate(hands_at(schedule, now)):
            kept = {s.step for s in lanes[device] if isinstance(s.step, Forward) and s.start <= now}
            done = {(s.step.stage, s.step.micro) for s in lanes[device] if s.step.letter in "BI" and s.end <= now}
            assert {s for s in hands.keeps if isinstance(s, Forward)} == {
                s for s in kept if (s.stage, s.micro) not in done
            }
            assert all(ends[step].start > now for step in hands.came)
    assert hands_at(schedule, 10**6)[0].keeps == []


def test_a_message_under_way_has_not_come_in():
    schedule, times = gpipe(2, 2), Times(1, 1, 1, message=5)
    assert hands_at(schedule, 1, times)[1].came == []
    assert hands_at(schedule, 6, times)[1].does == Forward(1, 0)
    assert hands_at(gpipe(2, 1), 4)[0].does == Backward(0, 0)


def test_a_moment_in_words():
    assert draw_moment(one_f_one_b(2, 2), 2).desc == (
        "1F1B, after 2: Device 0 waits, keeps F0, F1; come in: nothing. Device 1 does B0, keeps F0; come in: F1."
    )
    shown = [node.get("data-step") for node in nodes(draw_moment(one_f_one_b(2, 2), 2), "data-step")]
    assert shown == ["0F0", "0F1", "1B0", "1F0", "1F1"]


def test_moments_that_do_not_fit():
    for schedule in (zb_v(2, 4), gpipe(2, 9), gpipe(9, 2)):
        with pytest.raises(ValueError, match="at most 8 devices and 8 micro-batches"):
            draw_moment(schedule, 0)
