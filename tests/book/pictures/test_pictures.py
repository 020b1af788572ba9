"""Pictures: what is drawn is what the split rule says, and what is written is what is drawn."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from book import Picture, draw_bars, draw_matmul, draw_tensor, element, paint, stack
from lib import Partial, Replicate, Shard, shard_sizes

SVG = "{http://www.w3.org/2000/svg}"
sizes, counts = st.integers(1, 12), st.integers(1, 12)


def blocks(picture: Picture) -> list[dict]:
    """Every block of cells: rank, look, and the cells as counted from the geometry that a reader sees."""
    found = []
    for group in ElementTree.fromstring(picture.svg()).iter(f"{SVG}g"):
        if "data-cells" not in group.attrib:
            continue
        path = group.find(f"{SVG}path")
        strokes = path.get("d") if path is not None else ""
        cells = (1 + strokes.count("h"), 1 + strokes.count("v"))
        rect = group.find(f"{SVG}rect")
        found.append({"rank": int(group.get("data-rank")), "look": group.get("data-look"), "cells": cells,
                      "fill": group.get("fill"), "stroke": group.get("stroke"),
                      "box": [float(rect.get(k)) for k in ("x", "y", "width", "height")],
                      "values": [t.text for t in group.iter(f"{SVG}text")]})  # fmt: skip
    return found


def texts(picture: Picture) -> list[str]:
    return [node.text for node in ElementTree.fromstring(picture.svg()).iter(f"{SVG}text")]


@given(rows=sizes, cols=sizes, devices=counts, dim=st.sampled_from([0, 1, -1, -2]))
@settings(max_examples=60, deadline=None)
def test_shards_have_the_cells_and_the_color_of_their_owner(rows, cols, devices, dim):
    picture = draw_tensor((rows, cols), "W", Shard(dim), devices)
    parts = shard_sizes((rows, cols)[dim], devices)
    expected = [(r, (n, cols) if dim % 2 == 0 else (rows, n)) for r, n in enumerate(parts)]
    drawn = blocks(picture)
    assert [(b["rank"], b["cells"]) for b in drawn] == [(r, cells) for r, cells in expected if min(cells)]
    for b in drawn:
        assert (b["look"], b["fill"], b["stroke"]) == ("sharded", paint(b["rank"]).fill, paint(b["rank"]).ink)
    assert [t for t in texts(picture) if t.startswith("[")] == [f"[{r}, {c}]" for _, (r, c) in expected]
    assert [t for t in texts(picture) if t.startswith("rank")] == [f"rank {r}" for r in range(devices)]


@given(rows=sizes, cols=sizes, devices=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_copies_and_partial_sums_are_whole_on_every_device(rows, cols, devices):
    copies = blocks(draw_tensor((rows, cols), "X", Replicate(), devices))
    partial = blocks(draw_tensor((rows, cols), "X", Partial(), devices))
    for drawn, look in ((copies, "replicated"), (partial, "partial")):
        assert [(b["rank"], b["look"], b["cells"]) for b in drawn] == [(r, look, (rows, cols)) for r in range(devices)]
    assert all(b["fill"] == "none" and b["stroke"] == paint(b["rank"]).ink for b in copies)
    assert all(re.fullmatch(rf"url\(#omd-\w+-hatch{b['rank']}\)", b["fill"]) for b in partial)


@given(batch=sizes, inner=sizes, out=sizes, devices=counts, column=st.booleans())
@settings(max_examples=80, deadline=None)
def test_matmul_draws_each_device_its_part(batch, inner, out, devices, column):
    picture = draw_matmul((batch, inner), (inner, out), devices=devices, split="column" if column else "row")
    parts = shard_sizes(out if column else inner, devices)
    expected = []
    for r, n in enumerate(parts):
        if column:
            trio = [("replicated", (batch, inner)), ("sharded", (inner, n)), ("sharded", (batch, n))]
        else:
            trio = [("sharded", (batch, n)), ("sharded", (n, out)), ("partial", (batch, out))]
        expected += [(r, look, cells) for look, cells in trio if min(cells)]
    drawn = blocks(picture)
    assert [(b["rank"], b["look"], b["cells"]) for b in drawn] == expected
    # The shards of W tile W: side by side without gap or overlap, in the order of the ranks.
    tiles = [b["box"] for b in drawn if b["look"] == "sharded"][1 - column :: 2]
    axis = 0 if column else 1
    for before, after in zip(tiles, tiles[1:], strict=False):
        assert before[axis] + before[axis + 2] == pytest.approx(after[axis], abs=0.2)
    shapes = [t for t in texts(picture) if t.startswith("W") and "[" in t]
    assert [t.split(" ", 1)[1] for t in shapes] == [f"[{inner}, {n}]" if column else f"[{n}, {out}]" for n in parts]


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8, 64])
@pytest.mark.parametrize("split", ["column", "row"])
def test_everything_drawn_lies_inside_the_picture(devices, split):
    for shapes in (((3, 4), (4, 6)), ((1024, 768), (768, 3072)), ((16384, 16384), (16384, 53248))):
        picture = draw_matmul(*shapes, devices=devices, split=split, bytes_per_device=10**9)
        for b in blocks(picture):
            x, y, width, height = b["box"]
            assert x >= 0
            assert x + width <= picture.width
            assert y + height <= picture.height
        root = ElementTree.fromstring(picture.svg())
        assert min(float(n.get("font-size")) for n in root.iter() if n.get("font-size")) * 350 / 480 >= 9


def test_collective_is_an_arrow_only_where_something_is_sent():
    def verbs(**kwargs):
        picture = draw_matmul((3, 4), (4, 6), **kwargs)
        arrows = picture.svg().count('data-look="arrow"')
        return arrows, [t for t in texts(picture) if t in ("all-gather", "all-reduce") or "bytes" in t]

    assert verbs(devices=2, split="column", bytes_per_device=36) == (2, ["all-gather", "each device sends 36 bytes"])
    assert verbs(devices=2, split="row") == (2, ["all-reduce"])
    assert verbs(devices=1, split="row") == (0, [])
    assert verbs(devices=4, split="row", gather=False) == (0, [])


def test_result_is_outlined_once_per_holder():
    root = ElementTree.fromstring(draw_matmul((3, 4), (4, 6), devices=4, split="row").svg())
    outlines = [r for r in root.iter(f"{SVG}rect") if r.get("data-look") == "replicated"]
    assert [(r.get("data-rank"), r.get("stroke")) for r in outlines] == [(str(i), paint(i).ink) for i in range(4)]


@pytest.mark.parametrize("make", [torch.arange, np.arange])
def test_values_are_those_of_the_shard(make):
    x = make(24).reshape(4, 6)
    drawn = blocks(draw_tensor(x, "W", Shard(1), 4))
    assert [b["values"] for b in drawn] == [
        [str(v) for v in np.asarray(part).ravel()] for part in np.array_split(np.asarray(x), 4, axis=1)
    ]
    local = [x * 0 + 1, x - 1]
    assert [b["values"] for b in blocks(draw_tensor(x, "W", Partial(), 2, local=local))] == [
        [str(int(v)) for v in np.asarray(part).ravel()] for part in local
    ]
    assert blocks(draw_tensor(x, "W", Partial(), 2))[0]["values"] == []


def test_more_dimensions_keep_their_full_shape_in_the_label():
    picture = draw_tensor((2, 3, 768), "X", Shard(0), 3)
    assert [t for t in texts(picture) if t.startswith("[")] == ["[1, 3, 768]", "[1, 3, 768]", "[0, 3, 768]"]
    assert [t for t in texts(draw_tensor((6,), "b", Shard(0), 4)) if t.startswith("[")] == ["[2]", "[2]", "[1]", "[1]"]


def test_words_say_what_is_drawn():
    picture = draw_matmul((3, 4), (4, 6), devices=4, split="column")
    assert picture.title == "Y = X W, column split on 4 devices"
    assert "Of W, ranks 0 and 1 hold [4, 2] each; ranks 2 and 3 hold [4, 1] each." in picture.desc
    assert "all-gather" in picture.desc
    assert "Nothing is sent" in draw_matmul((3, 4), (4, 6), devices=1, split="row").desc
    bars = draw_bars([96, 0, 1536], "Bytes sent", "B")
    assert bars.desc == "Bars of Bytes sent. rank 0: 96 B; rank 1: 0 B; rank 2: 1,536 B."


def test_words_say_between_which_numbers_a_device_holds_its_part():
    x = torch.arange(8.0).reshape(2, 4) - 2
    pieces = "rank 0 holds [2, 2], from -2 to 3; rank 1 holds [2, 2], from 0 to 5."
    assert draw_tensor(x, "X", Shard(1), 2).desc.endswith(pieces)
    assert draw_tensor(x, "X", Replicate(), 2).desc.endswith("ranks 0 and 1 hold [2, 4] each, from -2 to 5.")
    errors = [0 * x, x, x]  # some of these zeros are below zero
    told = draw_tensor(x, "Error", Replicate(), 3, local=errors).desc
    assert told.endswith("rank 0 holds [2, 4], all 0; ranks 1 and 2 hold [2, 4] each, from -2 to 5.")
    for no_numbers in draw_tensor((2, 4), "X", Shard(1), 2), draw_tensor(x, "X", Shard(1), 2, values=False):
        assert no_numbers.desc.endswith("ranks 0 and 1 hold [2, 2] each.")


def test_bars_are_in_proportion():
    root = ElementTree.fromstring(draw_bars({"dense": 8.0, "sharded": 2.0}, "Weights", "GB").svg())
    dense, sharded = [float(r.get("width")) for r in root.iter(f"{SVG}rect")]
    assert dense == pytest.approx(4 * sharded, abs=0.3)
    assert 100 < dense < 400
    for values in ([3], [10**12, 1], [0, 0]):  # the longest bar leaves room for its number
        picture = draw_bars(values, "Bytes", "B")
        for node in ElementTree.fromstring(picture.svg()).iter(f"{SVG}text"):
            if node.text.endswith("B") and node.get("text-anchor") is None:
                assert float(node.get("x")) + 7 * len(node.text) <= picture.width


def test_escaping():
    nasty = """<b> & "quoted" 'name' </desc><script>"""
    for picture in (draw_tensor((2, 2), nasty, Shard(0), 2), draw_bars({nasty: 1}, nasty)):
        root = ElementTree.fromstring(picture.svg())
        assert nasty in root.find(f"{SVG}title").text
        assert nasty in root.find(f"{SVG}desc").text
        assert any(nasty in t for t in texts(picture))
        assert "<script>" not in picture._repr_html_()


def test_same_bytes_and_own_ids(tmp_path):
    def ids(picture):
        return set(re.findall(r' id="([^"]+)"', picture.svg()))

    one, again = (draw_matmul((3, 4), (4, 6), devices=2, split="row") for _ in range(2))
    other = draw_matmul((3, 4), (4, 6), devices=3, split="row")
    assert one.svg() == again.svg()
    assert not ids(one) & ids(other)
    svg = one.svg()
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= ids(one)
    assert set(re.search(r'aria-labelledby="([^"]+)"', svg)[1].split()) <= ids(one)
    assert 'role="img"' in svg
    one.save(tmp_path / "a.svg")
    file = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(file).tag == f"{SVG}svg"
    assert "svg:root" in file
    assert "svg:root" not in one._repr_html_()  # a file's style must not reach the page it is inlined in
    assert one._repr_mimebundle_()["text/plain"] == f"{one.title}\n{one.desc}"


def test_every_variable_has_a_fallback():
    svg = stack("all", *[draw_tensor((2, 16), "W", p, 16) for p in (Shard(1), Replicate(), Partial())]).svg()
    assert re.findall(r"var\(--omd-[a-z-]+\d*(.)", svg)
    assert set(re.findall(r"var\(--omd-[a-z0-9-]+(.)", svg)) == {","}


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: draw_matmul((3, 4), (5, 6), devices=2, split="row"), ValueError, "4 is not 5"),
        (lambda: draw_matmul((3, 4), (4, 6), devices=2, split="diagonal"), ValueError, 'split must be "column"'),
        (lambda: draw_matmul((3, 4), (4, 6), devices=0, split="row"), ValueError, "devices=0"),
        (lambda: draw_matmul((3, 4), (4, 6), devices=2.0, split="row"), TypeError, "integer, got 2.0"),
        (lambda: draw_matmul((2, 3, 4), (4, 6), devices=2, split="row"), ValueError, "x must have 2 dimensions"),
        (lambda: draw_tensor((4, 6), "W", Shard(2), 2), ValueError, "it has 2 dimensions"),
        (lambda: draw_tensor((4, 6), "W", "Shard(0)", 2), TypeError, "placement must be"),
        (lambda: draw_tensor("W"), TypeError, "a tensor or a shape"),
        (lambda: draw_tensor((4, -1)), ValueError, "none negative"),
        (lambda: draw_tensor((4, 6), "W", Partial(), 2, local=[torch.ones(4, 6)]), ValueError, "one per rank"),
        (lambda: draw_bars([], "b"), ValueError, "nothing to draw"),
        (lambda: draw_bars([1, -1], "b"), ValueError, "rank 1"),
        (lambda: draw_bars([float("nan")], "b"), ValueError, "finite"),
        (lambda: paint(-1), ValueError, "rank -1"),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=re.escape(says)):
        call()


def test_element_leaves_out_none_and_shortens_numbers():
    node = element("rect", None, x=12.0, y=0.25, stroke_width=2, fill=None, class_="a")
    assert node.attrib == {"x": "12", "y": "0.2", "stroke-width": "2", "class": "a"}
