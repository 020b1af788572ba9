"""The lanes of MLP, attention and layer: placements, shapes and collectives against runs of the layers themselves."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch
from parallel.variants import variant

from book import draw_block, draw_mlp, draw_qkv
from book.pictures.kit.axis import readable
from book.pictures.kit.lanes import Gate, Stage, gates, lanes, seen, sentence
from lib import ParallelBlock, ParallelMLP, ParallelSelfAttention
from lib.costs.measure import Phase
from lib.devices import Cluster
from lib.devices.meters import Count

SVG = "{http://www.w3.org/2000/svg}"
S, H, HEADS = 8, 16, 8


def texts(picture):
    return [n.text for n in ElementTree.fromstring(picture.svg()).iter(f"{SVG}text")]


def blocks(picture):
    """(rank, look, x, y, width, height) of every block."""
    found = []
    for node in ElementTree.fromstring(picture.svg()).iter(f"{SVG}g"):
        if node.get("data-cells"):
            box = [float(node.find(f"{SVG}rect").get(k)) for k in ("x", "y", "width", "height")]
            found.append((int(node.get("data-rank")), node.get("data-look"), *box))
    return found


def shapes(picture):
    """name -> [the shape written under it, ...], from the labels."""
    found = {}
    for name, shape in pairwise(texts(picture)):
        if re.fullmatch(r"\[[\d, ]+\]", shape or ""):
            found.setdefault(name, []).append(tuple(map(int, re.findall(r"\d+", shape))))
    return found


def talks(picture):
    """(letter, verbs forward, verbs backward) of every bar, from its words."""
    words = texts(picture)
    found = []
    for i, text in enumerate(words):
        if text and text.startswith("forward ↓ "):
            verbs = [line.split(" ", 2)[2].split(", ") for line in words[i : i + 2]]
            found.append((words[i - 1], *([v for v in some if v != "nothing"] for some in verbs)))
    return found


def metered(make, devices, sequence_parallel):
    """{verb: calls} and bytes of device 0 in a run with data, forward alone and both, for the (1, S, H) activations."""
    counts = []
    for backward in (False, True):
        cluster = Cluster(devices)

        def program(group, backward=backward):
            x = torch.ones(1, S // devices if sequence_parallel else S, H, dtype=torch.bfloat16, requires_grad=True)
            y = make(group).bfloat16()(x)
            if backward:
                y.sum().backward()

        cluster.run(program)
        verbs = cluster.meters.verbs()
        counts.append({v: (cluster.meters.count(0, v).calls, cluster.meters.count(0, v).bytes_sent) for v in verbs})
    forward, both = counts
    after = {v: tuple(b - f for b, f in zip(both[v], forward.get(v, (0, 0)), strict=True)) for v in both}
    return forward, {v: sent for v, sent in after.items() if sent != (0, 0)}


LAYERS = {
    "mlp": (
        lambda sp: lambda g: variant(ParallelMLP, sp)(H, g),
        lambda p, sp: draw_mlp(p, sp, S, H),
        1,  # bias of the second layer: its gradient is all-reduced with sequence parallelism
    ),
    "block": (
        lambda sp: lambda g: variant(ParallelBlock, sp)(H, HEADS, g, dropout=0.1),
        lambda p, sp: draw_block(p, sp, S, H, HEADS),
        6,  # two biases, and weight and bias of two LayerNorms
    ),
    "attention": (
        lambda sp: lambda g: ParallelSelfAttention(H, HEADS, g),
        lambda p, sp: draw_qkv(p, S, H, HEADS),
        0,
    ),
}
CASES = [(n, p, sp) for n in LAYERS for p in (1, 2, 4, 8) for sp in (False, True) if not (sp and n == "attention")]


@pytest.mark.parametrize(("name", "devices", "sequence_parallel"), CASES)
def test_the_bars_are_the_collectives_of_a_run(name, devices, sequence_parallel):
    layer, draw, small = LAYERS[name]
    forward, backward = metered(layer(sequence_parallel), devices, sequence_parallel)
    picture = draw(devices, sequence_parallel)
    bars = talks(picture)
    drawn = [[verb.replace("-", "_") for bar in bars for verb in bar[way]] for way in (1, 2)]
    if sequence_parallel and devices > 1:
        drawn[1] += ["all_reduce"] * small
    for verbs, meter in zip(drawn, (forward, backward), strict=True):
        sent = {verb: count for verb, count in meter.items() if count[1]}
        assert {verb: verbs.count(verb) for verb in set(verbs)} == {verb: calls for verb, (calls, _) in sent.items()}
    for way, meter in (("forward", forward), ("backward", backward)):
        total = sum(size for _, size in meter.values())
        line = next(t for t in texts(picture) if t and t.startswith(f"{way}: "))
        assert line.endswith(readable(total, "B") if total else "nothing")
        assert line in picture.desc


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_letters(devices):
    assert [bar[0] for bar in talks(draw_mlp(devices, False, S, H))] == ["f", "g"]
    assert [bar[0] for bar in talks(draw_mlp(devices, True, S, H))] == ["f\u0304", "g\u0304"]
    assert [bar[0] for bar in talks(draw_block(devices, True, S, H, HEADS))] == ["f\u0304", "g\u0304"] * 2
    assert [bar[0] for bar in talks(draw_qkv(devices, S, H, HEADS))] == ["f", "g"]


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_shapes_of_the_mlp_and_the_layer(devices, sequence_parallel):
    tokens = S // devices if sequence_parallel else S
    outside, inner = [(tokens, H)], 4 * H // devices
    assert shapes(draw_mlp(devices, sequence_parallel, S, H)) == {
        "X": outside,
        "× A, by columns": [(H, inner)],
        "= X A": [(S, inner)],
        "GeLU(X A)": [(S, inner)],
        "× B, by rows": [(inner, H)],
        "= partial sum": [(S, H)],
        "Z": outside,
    }
    assert shapes(draw_block(devices, sequence_parallel, S, H, HEADS)) == {
        "x": outside,
        "LayerNorm": outside * 2,
        "attention: heads": [(S, H // devices)],
        "y = x + dropout": outside,
        "MLP: GeLU(X A)": [(S, inner)],
        "z = y + dropout": outside,
    }


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_shapes_of_attention(devices):
    mine, d = HEADS // devices, H // HEADS
    assert shapes(draw_qkv(devices, S, H, HEADS)) == {
        "x": [(S, H)],
        "× Wq, Wk, Wv, each": [(H, mine * d)],
        "= Q, K, V, each": [(S, mine * d)],
        "scores Q Kᵀ / √d": [(mine, S, S)],
        "weights: softmax": [(mine, S, S)],
        "weights × V": [(mine, S, d)],
        "heads side by side": [(S, mine * d)],
        "× Wo, by rows": [(mine * d, H)],
        "= partial sum": [(S, H)],
        "output": [(S, H)],
    }


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_shards_lie_where_they_belong_in_the_whole(devices):
    columns, rows = Stage("c", (1,), "sharded", cut=1), Stage("r", (1,), "sharded", cut=0)
    whole, partial = Stage("w", (1,), "replicated"), Stage("p", (1,), "partial")
    picture = lanes("t", "d", [columns, rows, whole, partial], devices)
    drawn = blocks(picture)
    assert [b[0] for b in drawn] == list(range(devices)) * 4
    assert [b[1] for b in drawn[::devices]] == ["sharded", "sharded", "replicated", "partial"]
    ghosts = [n for n in ElementTree.fromstring(picture.svg()).iter(f"{SVG}rect") if n.get("stroke-dasharray") == "2 4"]
    assert len(ghosts) == 2 * devices
    for i, (rank, _, x, y, width, height) in enumerate(drawn[: 2 * devices]):
        left, top, wide, tall = (float(ghosts[i].get(k)) for k in ("x", "y", "width", "height"))
        if i < devices:
            assert (x, width) == pytest.approx((left + rank * wide / devices, wide / devices), abs=0.2)
            assert (y, height) == pytest.approx((top, tall), abs=0.2)
        else:
            assert (y, height) == pytest.approx((top + rank * tall / devices, tall / devices), abs=0.2)
            assert (x, width) == pytest.approx((left, wide), abs=0.2)
    arrows = [n for n in ElementTree.fromstring(picture.svg()).iter(f"{SVG}g") if n.get("data-look") == "arrow"]
    assert len(arrows) == 3 * devices, "from every row to the next"
    assert len({b[2:] for b in drawn[2 * devices :]}) == 2 * devices  # whole ones: one for each lane and row
    assert all(0 <= b[2] and b[2] + b[4] <= picture.width and b[3] + b[5] <= picture.height for b in drawn)


def test_looks_follow_the_placements():
    def looks(picture):
        return [b[1] for b in blocks(picture) if b[0] == 0]

    assert looks(draw_mlp(2, False, S, H)) == ["replicated", *["sharded"] * 4, "partial", "replicated"]
    assert looks(draw_mlp(2, True, S, H)) == [*["sharded"] * 5, "partial", "sharded"]
    copy, cut = "replicated", "sharded"
    assert looks(draw_block(2, False, S, H, HEADS)) == [copy, copy, cut, copy, copy, cut, copy]
    assert set(looks(draw_block(2, True, S, H, HEADS))) == {cut}
    assert looks(draw_qkv(2, S, H, HEADS)) == [copy, *[cut] * 7, "partial", copy]
    for tokens_or_rows in (blocks(draw_mlp(2, False, S, H))[8:10], blocks(draw_mlp(2, True, S, H))[:2]):  # B; X
        (*_, y0, _, tall), (*_, y1, _, _) = tokens_or_rows
        assert y1 == pytest.approx(y0 + tall, abs=0.2)
    # Along the sequence, from top to bottom; inside of the regions by columns, from left to right.
    tall = {(round(b[4]), round(b[5])) for b in blocks(draw_block(2, True, S, H, HEADS)) if b[0] == 0}
    assert len(tall) == 3


def test_bars_are_solid_where_something_is_sent_forward():
    def dashes(picture):
        root = ElementTree.fromstring(picture.svg())
        bars = [n for n in root.iter(f"{SVG}rect") if n.get("data-talk")]
        assert all(n.get("stroke") == "currentColor" for n in bars), "the dashes are to be seen"
        return [n.get("stroke-dasharray") for n in bars]

    assert dashes(draw_mlp(2, False, S, H)) == ["5 4", None]
    assert dashes(draw_mlp(2, True, S, H)) == [None, None]
    assert dashes(draw_mlp(1, True, S, H)) == ["5 4", "5 4"]


def test_residuals_go_around_the_regions():
    root = ElementTree.fromstring(draw_block(2, False, S, H, HEADS).svg())
    lines = [n.get("d") for n in root.iter(f"{SVG}path") if re.match(r"M450 [\d.]+L472 ", n.get("d") or "")]
    names = [
        float(n.get("y")) for n in root.iter(f"{SVG}text") if n.text in ("x", "y = x + dropout", "z = y + dropout")
    ]
    assert len(lines) == 2
    bars = [n for n in root.iter(f"{SVG}rect") if n.get("data-talk")]
    assert len(bars) == 4
    assert all(float(n.get("x")) + float(n.get("width")) < 472 for n in bars), "a residual passes beside them"
    for line, (start, end) in zip(lines, pairwise(names), strict=True):
        numbers = [float(n) for n in re.findall(r"[\d.]+", line)]
        assert numbers[1] == pytest.approx(start + 4 + 6, abs=0.2)  # a name stands 4 above the middle of its row
        assert numbers[-1] == pytest.approx(end + 4 - 6, abs=0.2)


def test_gates_of_one_device_send_nothing():
    assert gates(1, False) == (Gate("f", "", ""), Gate("g", "", ""))
    assert gates(1, True) == (Gate("f\u0304", "", ""), Gate("g\u0304", "", ""))


def test_observing_leaves_the_batch_out_and_tells_ways_apart():
    found = seen(lambda g: ParallelMLP(H, g), S, H, 4)
    assert found.inputs[""] == found.outputs[""] == (S, H)
    assert found.weights == {"up": (H, H), "down": (H, H)}
    size = 2 * 3 * S * H * 2 // 4
    for phase in found.forward, found.backward:
        assert (phase.calls, phase.bytes_sent) == ({"all_reduce": 1}, size)
    sent = {"all_gather": Count(calls=2, bytes_sent=1500), "all_reduce": Count(calls=1, bytes_sent=500)}
    assert sentence(Phase(0, sent)) == "2 all-gathers, 1 all-reduce: 2 kB"
    assert sentence(Phase(0, {"barrier": Count(calls=1)})) == sentence(Phase(0, {})) == "nothing"


def test_words_name_every_row():
    desc = draw_block(4, False, S, H, HEADS).desc
    assert "f: forward nothing, backward all-reduce" in desc
    assert "g: forward all-reduce, backward nothing" in desc
    assert "LayerNorm: [8, 16], a copy on every device" in desc
    assert "attention: heads: [8, 4], a shard on every device" in desc
    assert "small gradients" not in desc
    assert "small gradients of LayerNorm and bias" in draw_block(4, True, S, H, HEADS).desc
    assert "small gradients" not in "".join(filter(None, texts(draw_block(1, True, S, H, HEADS))))


@pytest.mark.parametrize(
    ("draw", "plain", "cut"),
    [
        (draw_mlp, "The MLP on 2 devices, TP", "The MLP on 2 devices, TP + SP"),
        (draw_block, "A layer on 2 devices, TP", "A layer on 2 devices, TP + SP"),
    ],
)
def test_titles_say_how_the_layer_is_split(draw, plain, cut):
    assert (draw(2).title, draw(2, True).title) == (plain, cut)
    assert plain in texts(draw(2))
    assert draw(2).desc.startswith(plain + ".")


def test_notes():
    same_work = "Outlined: every device does the same work."
    assert [same_work in texts(draw_block(devices, sp)) for devices in (1, 2) for sp in (False, True)] == [
        *(False, False),
        *(True, False),
    ]
    which = "(the all-reduces: small gradients of LayerNorm and bias)"
    assert [which in texts(draw_block(devices, sp)) for devices in (1, 2) for sp in (False, True)] == [
        *(False, False),
        *(False, True),
    ]
    assert "8 heads of d = 2 columns, 4 on each device" in texts(draw_qkv(2, S, H, HEADS))
    assert draw_qkv(2, S, H, HEADS).title == "Self-attention, 8 heads on 2 devices"


def test_sizes_that_no_machine_holds():
    assert shapes(draw_qkv(8, 10**7, 16384, 128))["scores Q Kᵀ / √d"] == [(16, 10**7, 10**7)]
    assert shapes(draw_mlp(8, True, 8 * 10**7, 16384))["GeLU(X A)"] == [(8 * 10**7, 8192)]


def test_text_stays_readable_on_a_phone():
    for picture in (draw_block(4, True), draw_qkv(4), draw_mlp(8, True)):
        for node in ElementTree.fromstring(picture.svg()).iter(f"{SVG}text"):
            assert float(node.get("font-size") or 13) * 350 / picture.width >= 9
            if node.get("text-anchor") is None and node.get("x"):
                assert float(node.get("x")) + 6.9 * len(node.text) <= picture.width, node.text


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: draw_mlp(3, False, S, H), "64 cannot be split over 3 devices"),
        (lambda: draw_qkv(3, S, H, HEADS), "8 heads cannot be split over 3 devices"),
        (lambda: draw_block(16, False, 16, 64, 16), "a picture shows 1 to 8 devices"),
        (lambda: draw_mlp(0, False, S, H), "devices=0"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        call()
