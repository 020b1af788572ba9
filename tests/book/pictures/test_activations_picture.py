"""Activation memory as bars: lengths are bytes, outlines are what every device keeps alike."""

import re
from xml.etree import ElementTree

import pytest

from book import Picture, explore
from book.pictures.activations import LEFT, PARTS, RIGHT, WAYS, draw_activations
from book.pictures.kit.language import paint
from lib.costs.activations import LayerShape, activation_bytes, activation_terms

SHAPE = LayerShape(2048, 4, 6144, 64)
ROWS = [(way, sp) for way in WAYS for sp in (False, True)]
SVG = "{http://www.w3.org/2000/svg}"


def bars(picture):
    """Top of the bar -> its segments from left to right: (part, look, x, width, size), from the drawing alone."""
    found = {}
    for node in ElementTree.fromstring(picture.svg()).iter(f"{SVG}rect"):
        if "data-part" in node.attrib:
            box = [float(node.get(name)) for name in ("x", "width")]
            look = "replicated" if node.get("fill") == "none" else "sharded"
            assert node.get("data-look") == look
            assert node.get("stroke") == (paint(5).ink if look == "replicated" else None)
            found.setdefault(float(node.get("y")), []).append(
                (node.get("data-part"), look, *box, int(node.get("data-size")))
            )
    return [found[y] for y in sorted(found)]


def texts(picture):
    return [node.text for node in ElementTree.fromstring(picture.svg()).iter(f"{SVG}text")]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_lengths_are_bytes(devices):
    picture = draw_activations(SHAPE, devices)
    drawn = bars(picture)
    assert len(drawn) == len(ROWS)
    assert f"t={devices}. " in picture.desc
    unit = (RIGHT - LEFT) / activation_bytes(SHAPE)  # one scale, whatever the devices
    for (way, sp), segments in zip(ROWS, drawn, strict=True):
        terms = activation_terms(SHAPE, devices, sp, way)
        x = LEFT
        assert [part for part, *_ in segments] == [p for p in PARTS if p in {term.part for term in terms}]
        for part, _, left, width, size in segments:
            expected = sum(term.size for term in terms if term.part == part)
            assert size == round(expected)
            assert left + width / 2 == pytest.approx(x + expected * unit / 2, abs=0.16)
            assert 0 <= expected * unit - width <= 2.6  # neighbors do not touch
            x += expected * unit
        assert x == pytest.approx(LEFT + activation_bytes(SHAPE, devices, sp, way) * unit, abs=1e-6)


def test_only_what_tensor_parallelism_leaves_whole_is_outlined():
    drawn = bars(draw_activations(SHAPE, 8))
    outlined = [{part for part, look, *_ in segments if look == "replicated"} for segments in drawn]
    left = {"inputs", "LayerNorm", "dropout"}
    assert outlined == [left, set(), left, set(), {"layer"}, set()]


def test_numbers_and_words():
    picture = draw_activations(SHAPE, 8, "One layer")
    numbers = [text for text in texts(picture) if re.search(r"B, [\d.]+%", text)]
    assert numbers == ["1.33 GB, 19%", "885 MB, 12%", "654 MB, 9%", "214 MB, 3%", "101 MB, 1%", "12.6 MB, 0.2%"]
    assert picture.desc == (
        "One layer, on each device. s=2048, b=4, h=6144, a=64, t=8. "
        "everything kept, TP: 1.33 GB, 19% (671 MB for the scores, 503 MB the same on every device). "
        "everything kept, TP + SP: 885 MB, 12% (671 MB for the scores). "
        "scores computed anew (selective), TP: 654 MB, 9% (503 MB the same on every device). "
        "scores computed anew (selective), TP + SP: 214 MB, 3%. "
        "whole layer computed anew (full), TP: 101 MB, 1% (101 MB the same on every device). "
        "whole layer computed anew (full), TP + SP: 12.6 MB, 0.2%."
    )
    names = [text for text in texts(picture) if text in {*WAYS.values(), "TP", "TP + SP"}]
    assert names == [name for says in WAYS.values() for name in (says, "TP", "TP + SP")]
    legend = [text for text in texts(picture) if re.match(r"\d  ", text)]
    assert [text.split()[0] for text in legend] == [str(i + 1) for i in range(len(PARTS))]
    assert [text.split()[-1] for text in legend] == ["5as²b", "8sbh", "16sbh", "4sbh", "4sbh", "2sbh", "2sbh"]


def test_the_numbers_in_the_segments_are_those_of_the_legend():
    root = ElementTree.fromstring(draw_activations(SHAPE, 8).svg())
    boxes = [node for node in root.iter(f"{SVG}rect") if "data-part" in node.attrib]
    parts = list(PARTS)
    tops = sorted({float(box.get("y")) for box in boxes})
    assert min(below - above for above, below in zip(tops, tops[1:], strict=False)) > float(boxes[0].get("height"))
    marked = 0
    for node in root.iter(f"{SVG}text"):
        if (node.text or "").isdigit():
            x, y = float(node.get("x")), float(node.get("y"))
            (box,) = [
                b for b in boxes if 0 < x - float(b.get("x")) < float(b.get("width")) and 0 < y - float(b.get("y")) < 22
            ]
            assert box.get("data-part") == parts[int(node.text) - 1]
            assert node.get("fill") == ("currentColor" if box.get("fill") == "none" else paint(0).text)
            marked += 1
    assert marked == sum(float(box.get("width")) >= 8.5 for box in boxes)  # all that have room for it


def test_as_a_widget():
    shown = explore(
        lambda model, devices: draw_activations({"22B": SHAPE}[model], devices), model=["22B"], devices=[1, 2, 4, 8]
    )
    assert len(shown.frames) == 4
    assert isinstance(draw_activations(SHAPE, 2), Picture)


def test_refuses():
    with pytest.raises(ValueError, match="a bar of 1.33 GB is longer than the scale, most=1 GB"):
        draw_activations(SHAPE, 8, most=1e9)
    with pytest.raises(ValueError, match="64 heads cannot be split over 3 devices"):
        draw_activations(SHAPE, 3)
