"""Pictures of attention: every weight that is drawn is the one that was given."""

import re
from xml.etree import ElementTree

import pytest
import torch

from book import draw_attention, draw_head_scores, draw_weighted_average
from book.pictures.kit.heat import STRONGEST
from book.pictures.kit.language import (
    DARK_INK,
    DARK_PAPER,
    LIGHT_INK,
    LIGHT_PAPER,
    PALETTE,
    contrast,
    mix,
    paint,
)
from lib import ParallelQKV
from lib.devices import Cluster

SVG = "{http://www.w3.org/2000/svg}"
WORDS = "the cat sat because it slept".split()


def nodes(picture, **having):
    root = ElementTree.fromstring(picture.svg())
    wanted = {key.replace("_", "-"): value for key, value in having.items()}
    return [n for n in root.iter() if all(n.get(k) is not None and v in (True, n.get(k)) for k, v in wanted.items())]


def texts(picture):
    return [n.text for n in ElementTree.fromstring(picture.svg()).iter(f"{SVG}text")]


def maps(picture):
    """Of every heat map its cells in reading order: (value, opacity, x, y); its color; and how many crosses."""
    found = []
    for heat in nodes(picture, data_look="heat"):
        cells = [
            (float(n.get("data-value")), float(n.get("fill-opacity")), float(n.get("x")), float(n.get("y")))
            for n in heat.iter(f"{SVG}rect")
        ]
        found.append((cells, heat.find(f"{SVG}g").get("fill"), heat.find(f"{SVG}path").get("d").count("L")))
    return found


def weights(count, causal=False, heads=None):
    torch.manual_seed(count)
    scores = torch.randn(*([heads] if heads else []), count, count, dtype=torch.float64)
    if causal:
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
    return scores.softmax(-1)


def test_every_weight_stands_in_its_cell():
    given = weights(6)
    picture = draw_attention(WORDS, given)
    ((cells, color, crosses),) = maps(picture)
    assert [value for value, *_ in cells] == pytest.approx(given.flatten().tolist(), rel=1e-5)
    assert [opacity for _, opacity, *_ in cells] == pytest.approx((STRONGEST * given).flatten().tolist(), abs=1e-3)
    columns, rows = sorted({x for *_, x, _ in cells}), sorted({y for *_, y in cells})
    assert [(x, y) for *_, x, y in cells] == [(x, y) for y in rows for x in columns]
    assert (len(columns), len(rows), color, crosses) == (6, 6, "currentColor", 0)
    assert [t for t in texts(picture) if re.fullmatch(r"\d\.\d\d", t)] == [f"{v:.2f}" for v in given.flatten()]
    # Each word stands at its row, and above its column.
    named = {w: [(float(n.get("x")), float(n.get("y"))) for n in nodes(picture, x=True) if n.text == w] for w in WORDS}
    for i, word in enumerate(WORDS):
        (above, left) = named[word]
        assert columns[i] < above[0] < columns[i] + columns[1] - columns[0]
        assert rows[i] < left[1] < rows[i] + rows[1] - rows[0]
        assert left[0] < columns[0]
        assert above[1] < rows[0]
    heights = {n.text: float(n.get("y")) for n in nodes(picture, x=True) if (n.text or "").startswith(("query", "key"))}
    assert heights["query"] == named["the"][0][1], "above the names of the rows"
    assert heights["key: what it takes from"] < named["the"][0][1], "above the names of the columns"


def test_a_causal_mask_is_seen_and_said():
    picture = draw_attention(WORDS, weights(6, causal=True))
    ((cells, _, crosses),) = maps(picture)
    assert (len(cells), crosses) == (21, 15)
    assert "No word takes anything from a later word." in picture.desc
    assert '"cat" takes' in picture.desc
    assert 'from "sat", ' not in picture.desc.split('"cat" takes')[1].split(";")[0]
    assert "later word" not in draw_attention(WORDS, weights(6)).desc
    assert maps(draw_attention(["a"], torch.ones(1, 1)))[0][2] == 0


def test_arcs_of_a_query_are_as_thick_as_its_weights():
    given = weights(6)
    given[4] = torch.tensor([0.001, 0.3, 0.05, 0.1, 0.2, 0.349])
    picture = draw_attention(WORDS, given, query=4)
    arcs = nodes(picture, data_look="arc")
    assert [float(n.get("data-value")) for n in arcs] == [0.3, 0.05, 0.1, 0.349]  # not itself, and not next to nothing
    assert [float(n.get("stroke-width")) for n in arcs] == pytest.approx([4.3, 1.55, 2.1, 4.84], abs=0.06)
    ends = [re.findall(r"[\d.]+", n.get("d")) for n in arcs]
    starts = [float(n.get("x")) for n in nodes(picture, text_anchor="middle") if n.text in WORDS][:6]
    assert [float(numbers[0]) for numbers in ends] == pytest.approx([starts[i] for i in (1, 2, 3, 5)], abs=0.1)
    assert {float(numbers[-2]) for numbers in ends} == {round(starts[4], 1)}
    under_the_words = [t for t in texts(picture) if re.fullmatch(r"\d\.\d\d", t)][:6]
    assert under_the_words == ["0.00", "0.30", "0.05", "0.10", "0.20", "0.35"]
    assert picture.desc.count(" takes ") == 1
    assert '"it" takes 0.00 from "the", 0.30 from "cat"' in picture.desc
    assert [n.text for n in nodes(picture, font_weight="600") if n.text in WORDS] == ["it"] * 3  # at arcs, column, row
    # The frame lies around row 4 of the map.
    ((cells, *_),) = maps(picture)
    frame = next(n for n in nodes(picture, stroke_width="2.5") if n.tag == f"{SVG}rect")
    assert float(frame.get("y")) == pytest.approx(cells[4 * 6][3], abs=0.1)


@pytest.mark.parametrize("count", [1, 2, 7, 11, 12])
def test_long_sentences_stay_inside(count):
    words = [f"word{i}long" for i in range(count)]
    picture = draw_attention(words, weights(count), query=count - 1)
    for node in nodes(picture, x=True):
        if node.tag == f"{SVG}rect":
            assert 0 <= float(node.get("x"))
            assert float(node.get("x")) + float(node.get("width")) <= picture.width
        elif node.get("transform"):
            assert float(node.get("x")) + 7.6 * len(node.text) / 2 <= picture.width + 0.1
        elif node.get("text-anchor") == "middle":
            assert 0 <= float(node.get("x")) - 7.6 * len(node.text) / 2 + 0.1
            assert float(node.get("x")) + 7.6 * len(node.text) / 2 <= picture.width + 0.1
    assert max(float(n.get("y")) for n in nodes(picture, y=True)) <= picture.height
    (heat,) = nodes(picture, data_look="heat")
    wide = float(next(heat.iter(f"{SVG}rect")).get("width"))
    assert len(list(heat.iter(f"{SVG}text"))) == (count**2 if wide >= 34 else 0), "digits only where they have room"


def test_an_average_as_areas():
    picture = draw_weighted_average([2, 5, 9], [0.1, 0.3, 0.6])
    bars = [n for n in nodes(picture, data_value=True) if n.tag == f"{SVG}rect"]
    (line,) = [n for n in nodes(picture, data_value=True) if n.tag == f"{SVG}path"]
    sizes = [(float(n.get("width")), float(n.get("height"))) for n in bars]
    assert [w / sum(w for w, _ in sizes) for w, _ in sizes] == pytest.approx([0.1, 0.3, 0.6], abs=1e-3)
    assert [h / sizes[-1][1] for _, h in sizes] == pytest.approx([2 / 9, 5 / 9, 1], abs=1e-2)
    assert all(float(n.get("fill-opacity")) < 0.5 for n in bars), "the line is to be seen on them"
    base = float(bars[0].get("y")) + sizes[0][1]
    height = base - float(re.match(r"M[\d.]+ ([\d.]+)", line.get("d"))[1])
    assert sum(w * h for w, h in sizes) == pytest.approx(height * sum(w for w, _ in sizes), rel=1e-2)
    assert float(line.get("data-value")) == 7.1
    assert "0.1 × 2 + 0.3 × 5 + 0.6 × 9 = 7.1" in picture.desc
    assert len({n.get("y") for n in nodes(picture, text_anchor="middle") if n.text in ("0.1", "0.3", "0.6")}) == 1
    small = draw_weighted_average([1, 2, 3], [0.02, 0.03, 0.95])  # their numbers would stand in each other
    assert len({n.get("y") for n in nodes(small, text_anchor="middle") if n.text in ("0.02", "0.03")}) == 2
    assert texts(picture)[-3:] == ["0.1 × 2 + 0.3 × 5 + 0.6 × 9", "= 0.2 + 1.5 + 5.4", "= 7.1"]


def test_heads_are_drawn_on_the_device_that_has_them():
    given = weights(5, causal=True, heads=4)
    picture = draw_head_scores(list(given.split(2)))
    drawn = maps(picture)
    assert [color for _, color, _ in drawn] == [paint(rank).fill for rank in (0, 0, 1, 1)]
    for (cells, _, crosses), head in zip(drawn, given, strict=True):
        seen = [head[q, k].item() for q in range(5) for k in range(q + 1)]
        assert [value for value, *_ in cells] == pytest.approx(seen, rel=1e-5)
        assert [opacity for _, opacity, *_ in cells] == pytest.approx(seen, abs=1e-3)  # the largest of all is 1
        assert crosses == 10
    assert [t for t in texts(picture) if t.startswith("head ")] == [f"head {i}" for i in range(4)]
    assert [t for t in texts(picture) if t.startswith("rank ")] == ["rank 0", "rank 1"]
    assert "Crossed out: keys after the query (causal mask)." in texts(picture)
    largest, key = given[2, -1].max(0)
    assert f"head 2 on rank 1: {largest:.2f} at key {key}" in picture.desc


def test_scores_may_be_negative_and_hidden_by_minus_infinity():
    scores = torch.tensor([[[-2.0, -torch.inf], [1.0, 4.0]]])
    picture = draw_head_scores([scores, scores], "scores")
    ((cells, _, crosses), _) = maps(picture)
    assert [(value, opacity) for value, opacity, *_ in cells] == [(-2, 0), (1, 0.5), (4, 1)]
    assert crosses == 1
    assert "Empty: -2.00. Full color: 4.00." in texts(picture)
    assert maps(draw_head_scores([scores[:, 1:, 1:]]))[0][2] == 0


def test_scores_of_a_run():
    """What a chapter does: each device computes the weights of its own heads; together they are those of one device."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, dtype=torch.float64)

    def program(group):
        torch.manual_seed(1)
        layer = ParallelQKV(8, 4, 4, group).double()
        own, common = layer.widths
        q, k, _ = layer(x)[0].split([own, common, common], -1)
        q, k = (y.unflatten(-1, (-1, 2)).transpose(0, 1) for y in (q, k))
        return (q @ k.transpose(-2, -1)).softmax(-1)

    values = [
        [value for cells, *_ in maps(draw_head_scores(Cluster(devices).run(program))) for value, *_ in cells]
        for devices in (1, 2, 4)
    ]
    assert len(values[0]) == 4 * 4 * 4
    assert values[0] == values[1] == values[2]


def test_digits_are_readable_on_every_color():
    book = [("#222832", "#FFFFFF"), ("#CED6DD", "#14181E")]  # text and paper of the built book, light and dark
    for ink, paper in [(LIGHT_INK, LIGHT_PAPER), (DARK_INK, DARK_PAPER), *book]:
        for fill in [ink, *(color[0] for color in PALETTE)]:
            assert contrast(ink, mix(paper, fill, STRONGEST)) >= 4.5


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: draw_attention([], torch.ones(0, 0)), "0 words do not fit"),
        (lambda: draw_attention(["a"] * 13, torch.eye(13)), "13 words do not fit"),
        (lambda: draw_attention(["a", "b"], torch.eye(3)), "weights of shape [3, 3] for 2 words"),
        (lambda: draw_attention(["a", "b"], torch.eye(2)[None]), "of one head"),
        (lambda: draw_attention(["a", "b"], torch.ones(2, 2)), "the row of 'a' has a sum of 2"),
        (lambda: draw_attention(["a", "b"], torch.tensor([[1.0, 0], [2, -1]])), "the row of 'b' has a sum of 1 and -1"),
        (lambda: draw_attention(["a", "b"], torch.full((2, 2), torch.nan)), "sum of nan"),
        (lambda: draw_attention(["a", "b"], torch.eye(2), query=2), "query=2 is no word"),
        (lambda: draw_weighted_average([1, 2], [1]), "2 values and 1 weights"),
        (lambda: draw_weighted_average([], []), "0 values"),
        (lambda: draw_weighted_average([1] * 6, [1 / 6] * 6), "6 values"),
        (lambda: draw_weighted_average([1, 2], [0.5, 0.6]), "add up to 1"),
        (lambda: draw_weighted_average([1, 2], [1.5, -0.5]), "must be positive"),
        (lambda: draw_weighted_average([1, -2], [0.5, 0.5]), "must not be negative"),
        (lambda: draw_weighted_average([1, float("inf")], [0.5, 0.5]), "must not be negative"),
        (lambda: draw_head_scores([]), "devices=0"),
        (lambda: draw_head_scores([torch.ones(1, 2, 2)] * 9), "1 to 8 devices"),
        (lambda: draw_head_scores([torch.ones(1, 2, 2), torch.ones(2, 2, 2)]), "[1, 2, 2], [2, 2, 2]"),
        (lambda: draw_head_scores([torch.ones(2, 2)]), "pass (heads/P, T, T)"),
        (lambda: draw_head_scores([torch.ones(1, 2, 3)]), "pass (heads/P, T, T)"),
        (lambda: draw_head_scores([torch.ones(17, 2, 2)]), "17 heads of 2 positions"),
        (lambda: draw_head_scores([torch.ones(1, 25, 25)]), "1 head of 25 positions"),
        (lambda: draw_head_scores([torch.full((1, 2, 2), -torch.inf)]), "not finite"),
        (lambda: draw_head_scores([torch.full((1, 2, 2), torch.nan)], "scores"), "the scores hold a value"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        call()
