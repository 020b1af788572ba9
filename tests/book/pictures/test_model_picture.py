"""The GPT drawn from its model: shapes, cuts and all-reduces against models that run."""

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch

from book import Picture, draw_model, explore
from book.pictures.model import GLYPH, TALL, WIDE
from lib import dense_state
from lib.devices import Cluster
from lib.parallel.gpt.config import SIZES, GPTConfig
from lib.parallel.gpt.model import GPT

SVG = "{http://www.w3.org/2000/svg}"
SMALL = GPTConfig(layers=3, hidden=16, heads=8, vocabulary=50, positions=6)
ROWS = {  # what the reader sees, from top to bottom -> the weight, by its name in the state dict
    "embedding": "embedding.weight",
    "positions": "positions.weight",
    "LayerNorm 1": "blocks.0.norm1.weight",
    "Q, K, V": "blocks.0.attention.qkv.weight",
    "output": "blocks.0.attention.out.weight",
    "LayerNorm 2": "blocks.0.norm2.weight",
    "MLP, up": "blocks.0.mlp.up.weight",
    "MLP, down": "blocks.0.mlp.down.weight",
    "LayerNorm 3": "norm.weight",
}
WHOLE = {
    name for name in SMALL.shapes() if "norm" in name or "positions" in name or name.endswith(("out.bias", "down.bias"))
}
LINEAR = ["Q, K, V", "output", "MLP, up", "MLP, down"]


def nodes(picture, tag):
    return list(ElementTree.fromstring(picture.svg()).iter(f"{SVG}{tag}"))


def texts(picture):
    return [n.text for n in nodes(picture, "text")]


def rows(picture):
    """name -> (its two shapes, its blocks as (rank, look, x, y, width, height), whether an all-reduce follows)."""
    blocks = []
    for node in nodes(picture, "g"):
        if node.get("data-cells"):
            box = [float(node.find(f"{SVG}rect").get(k)) for k in ("x", "y", "width", "height")]
            blocks.append((int(node.get("data-rank")), node.get("data-look"), *box))
    found, norms = {}, 0
    words = [(n.text, float(n.get("y"))) for n in nodes(picture, "text")]
    for text, y in words:
        if text not in {name.rstrip(" 123") for name in ROWS}:
            continue
        norms += text == "LayerNorm"
        line = [t for t, at in words if at == y and t != text]
        shapes = [tuple(int(n.replace(",", "")) for n in t.split(" × ")) for t in line if t[0].isdigit()]
        mine = [b for b in blocks if y - 20 < b[3] + b[5] / 2 < y + 12]
        found[f"{text} {norms}" if text == "LayerNorm" else text] = (shapes, mine, "all-reduce" in line)
    return found


def shapes_of(config, devices):
    """Of the whole weights, and of those of the last device, from the models."""

    def program(group):
        return {name: tuple(p.shape) for name, p in GPT(config, group).named_parameters()}

    return Cluster(1).run(program)[0], Cluster(devices).run(program)[-1]


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_shapes_are_those_of_the_models(devices):
    whole, mine = shapes_of(SMALL, devices)
    drawn = rows(draw_model(SMALL, devices))
    assert list(drawn) == list(ROWS)
    for row, name in ROWS.items():
        order = -1 if row in LINEAR else 1  # drawn as (in, out), kept as (out, in)
        assert drawn[row][0] == [whole[name][::order], mine[name][::order]], row


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_the_colors_lie_where_the_weights_of_the_devices_do(devices):
    """Models filled with their ranks, and put together, tell whose every element is."""

    config = replace(SMALL, vocabulary=48)  # without padding, which no dense weight has

    def program(group):
        model = GPT(config, group)
        for p in model.parameters():
            p.data.fill_(group.rank)
        return model

    models = Cluster(devices).run(program)
    for p in (p for model in models for name, p in model.named_parameters() if name in WHOLE):
        p.data.zero_()  # copies must be equal to be merged
    owner = dense_state(models)
    drawn = rows(draw_model(config, devices))
    for row, name in ROWS.items():
        blocks = drawn[row][1]
        if name in WHOLE:
            assert [b[:2] for b in blocks] == [(rank, "replicated") for rank in range(devices)], row
            assert len({b[4:] for b in blocks}) == 1, "copies are alike"
            assert blocks[0][5] == (10 if "norm" in name else TALL), "a vector is flat"
            lefts = [GLYPH, *(b[2] for b in blocks), GLYPH + WIDE]
            assert all(lefts[i + 1] + blocks[0][4] < lefts[i + 2] for i in range(devices)), "side by side"
            continue
        assert {b[1] for b in blocks} == {"sharded"}
        assert sum(b[4] * b[5] for b in blocks) == pytest.approx(WIDE * TALL, rel=0.02), "no gap, nothing twice"
        matrix = owner[name].T if row in LINEAR else owner[name]
        top = min(b[3] for b in blocks)
        for i in range(matrix.shape[0]):
            for j in range(matrix.shape[1]):
                x = GLYPH + (j + 0.5) / matrix.shape[1] * WIDE
                y = top + (i + 0.5) / matrix.shape[0] * TALL
                here = [b[0] for b in blocks if b[2] <= x < b[2] + b[4] and b[3] <= y < b[3] + b[5]]
                assert here == [int(matrix[i, j])], (row, i, j)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_all_reduces_are_those_of_a_forward_pass(devices):
    picture, cluster = draw_model(SMALL, devices), Cluster(devices)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    calls = []
    for arguments in ([tokens], [tokens, tokens]):
        cluster.run(lambda group, *given: GPT(SMALL, group)(*given).detach(), *arguments)
        calls.append(cluster.meters.count(0).calls)
        assert cluster.meters.verbs() == ["all_reduce"]
    followed = [row for row, (_, _, talks) in rows(picture).items() if talks]
    line = f"{calls[0]} all-reduces of the whole activation in a forward pass"
    if devices == 1:
        assert followed == []
        assert not any("all-reduce" in text for text in texts(picture))
        assert "all-reduce" not in picture.desc
        return
    assert followed == ["embedding", "output", "MLP, down"]
    assert sum(node.get("data-look") == "arrow" for node in nodes(picture, "g")) == 3
    assert calls[0] == 1 + (len(followed) - 1) * SMALL.layers
    assert line in texts(picture)
    assert calls[1] - calls[0] == 3
    assert "loss: three all-reduces of a number per token" in texts(picture)
    assert f"A forward pass has {calls[0]} all-reduces of the whole activation, and 3 small ones" in picture.desc


@pytest.mark.parametrize("devices", [1, 4])
def test_parameters_are_counted_in_the_model(devices):
    held = Cluster(devices).run(lambda group: sum(p.numel() for p in GPT(SMALL, group).parameters()))[0]
    whole = sum(p.numel() for p in Cluster(1).run(lambda group: GPT(SMALL, group))[0].parameters())
    line = f"{held:,} parameters on rank 0, of {whole:,}"
    picture = draw_model(SMALL, devices)
    assert line in texts(picture)
    assert line in picture.desc


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("devices", [1, 4, 5, 8])
def test_every_size_is_drawn_inside_of_the_picture(name, devices):
    config = GPTConfig.preset(name)
    if config.heads % devices:
        with pytest.raises(ValueError, match=f"{config.heads} heads cannot be split over {devices} devices"):
            draw_model(config, devices)
        return
    picture = draw_model(config, devices)
    assert f"{config.layers} times" in texts(picture)
    assert f"Then, {config.layers} times. LayerNorm" in picture.desc
    assert f"{config.parameters:,}" in picture.desc
    for tag in ("rect", "text"):
        for node in nodes(picture, tag):
            if node.get("x") is not None:
                assert 0 <= float(node.get("x")) <= picture.width
                assert 0 <= float(node.get("y")) + float(node.get("height", 0)) <= picture.height
    words = [(n.text, float(n.get("x")), float(n.get("y"))) for n in nodes(picture, "text") if n.get("x")]
    for (text, x, y), (_, after, line) in pairwise(words):
        if y == line and after > x and re.match(r"[\d,]+ ×", text):
            assert x + 6.6 * len(text) < after + 8, (text, "runs into its neighbor")


def test_headings_stand_above_their_columns():
    at = {}
    for node in nodes(draw_model(SMALL, 2), "text"):
        at.setdefault(node.text, node.get("x"))
    assert at["weight"] == at["50 × 16"] == at["16 × 48"]
    assert at["of each device"] == at["25 × 16"] == at["16 × 24"]
    assert at["then"] == at["all-reduce"]
    assert at["head"] == at["embedding"]
    assert "the embedding once more, as columns" in at


@pytest.mark.parametrize("devices", [1, 4])
def test_a_frame_holds_the_layer_that_is_there_several_times(devices):
    picture = draw_model(SMALL, devices)
    (frame,) = [n for n in nodes(picture, "rect") if n.get("rx") == "6"]
    top, bottom = float(frame.get("y")), float(frame.get("y")) + float(frame.get("height"))
    words = [(n.text, float(n.get("y"))) for n in nodes(picture, "text") if n.text in {*ROWS, "LayerNorm", "head"}]
    assert [text for text, y in words if top < y < bottom] == ["LayerNorm", *LINEAR[:2], "LayerNorm", *LINEAR[2:]]
    assert any(top < float(n.get("y")) < bottom for n in nodes(picture, "text") if n.text == "3 times")


def test_ranks_have_their_plates_and_the_legend_explains_both_looks():
    words = texts(draw_model(SMALL, 4))
    assert words[words.index("rank") + 1 :][:4] == ["0", "1", "2", "3"]
    assert {"shard: one device's part", "replica: a whole copy"} <= set(words)
    assert "shard: one device's part" not in texts(draw_model(SMALL, 1))


def test_the_description_says_how_each_weight_is_cut():
    desc = draw_model(SMALL, 2).desc
    assert "embedding [50, 16] is cut by rows, [25, 16] on each, then an all-reduce. positions [6, 16] is whole" in desc
    assert "Q, K, V [16, 48] is cut by columns, each of its 3 blocks, [16, 24] on each. output [16, 16]" in desc
    assert "MLP, down [64, 16] is cut by rows, [32, 16] on each, then an all-reduce. After the layers. Layer" in desc
    assert "cut" not in draw_model(SMALL, 1).desc


def test_a_widget_of_it():
    shown = explore(lambda size, devices: draw_model(GPTConfig.preset(size), devices), size=["gpt2"], devices=[1, 4])
    assert isinstance(draw_model(SMALL, 2), Picture)
    assert "12 layers of 768 on 4 devices" in shown._repr_html_()


@pytest.mark.parametrize("devices", [0, 9])
def test_refused(devices):
    with pytest.raises(ValueError, match=f"a picture shows 1 to 8 devices, got devices={devices}"):
        draw_model(SMALL, devices)


def test_every_weight_of_a_model_has_a_row():
    matrices = {name for name, shape in SMALL.shapes().items() if len(shape) == 2 and "blocks" not in name}
    first = {name for name in SMALL.shapes() if name.startswith("blocks.0.") and name.endswith("weight")}
    assert set(ROWS.values()) == matrices | first | {"norm.weight"}
