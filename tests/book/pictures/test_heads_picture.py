"""Which head lives where: the picture against the layers, counted from the geometry that a reader sees."""

import re
from xml.etree import ElementTree

import pytest
import torch

from book import draw_heads
from book.pictures.heads import CELLS
from book.pictures.kit.axis import readable
from lib import KVCache, ParallelQKV, ParallelSelfAttention, shard_sizes
from lib.devices import Cluster

SVG = "{http://www.w3.org/2000/svg}"
LAYOUTS = [(12, 12, 4), (12, 12, 3), (12, 4, 4), (8, 2, 8), (8, 1, 8), (6, 3, 3), (4, 2, 1), (16, 4, 8), (3, 1, 3)]


def blocks(picture):
    """(rank, look, texts, x, y, width, height) of every block, in the order drawn."""
    found = []
    for node in ElementTree.fromstring(picture.svg()).iter(f"{SVG}g"):
        if node.get("data-cells"):
            box = [float(node.find(f"{SVG}rect").get(k)) for k in ("x", "y", "width", "height")]
            texts = [t.text for t in node.iter(f"{SVG}text")]
            found.append((int(node.get("data-rank")), node.get("data-look"), texts, *box))
    return found


def parts(picture, devices):
    """The blocks of the devices' heads; those of the weight cut per head; those of the wrong cut."""
    drawn = blocks(picture)
    heads, bars = drawn[: 2 * devices], drawn[2 * devices :]
    tops = [float(n.get("y")) for n in ElementTree.fromstring(picture.svg()).iter(f"{SVG}text")
            if (n.text or "").startswith("Fused weight")]  # fmt: skip
    lower = tops[1] if len(tops) > 1 else float("inf")
    return heads, [b for b in bars if b[4] < lower], [b for b in bars if b[4] > lower]


@pytest.mark.parametrize(("heads", "kv_heads", "devices"), LAYOUTS)
def test_each_device_has_the_heads_of_its_layer(heads, kv_heads, devices):
    picture = draw_heads(heads, kv_heads, devices, head_size=2, positions=3)

    def program(group):
        """The numbers of the heads whose rows this device's fused weight has, from the weights themselves."""
        layer = ParallelQKV(heads * 2, heads, kv_heads, group)
        with torch.no_grad():
            whole = torch.arange(heads + 2 * kv_heads).repeat_interleave(2)[:, None].expand(-1, heads * 2)
            layer.weight.copy_(layer.layout["weight"].piece(whole, group.size, group.rank))
        own, common = layer.widths
        q, k, v = (x[::2, 0].int() for x in layer.weight.split([own, common, common]))
        return q.tolist(), (k - heads).tolist(), (v - heads - kv_heads).tolist()

    expected = Cluster(devices).run(program)
    shared = "replicated" if devices > kv_heads else "sharded"
    for rank, (queries, keys, values) in enumerate(expected):
        assert keys == values
        own, common = parts(picture, devices)[0][2 * rank : 2 * rank + 2]
        assert own[:3] == (rank, "sharded", [str(n) for n in queries])
        assert common[:3] == (rank, shared, [str(n) for n in keys])
        assert own[3] == common[3] == CELLS
        assert own[5] == pytest.approx(common[5], abs=0.2)  # keys and values stand under the queries that use them
        names = [f"heads {n[0]} to {n[-1]}" if len(n) > 1 else f"head {n[0]}" for n in (queries, keys)]
        assert f"rank {rank} holds query {names[0]}, keys and values of {names[1]}, " in picture.desc


@pytest.mark.parametrize(("heads", "kv_heads", "devices"), LAYOUTS)
def test_the_fused_weight_is_cut_per_head(heads, kv_heads, devices):
    _, right, wrong = parts(draw_heads(heads, kv_heads, devices, head_size=2, positions=3), devices)
    copies = max(1, devices // kv_heads)
    scale, groups = 464 / (heads + 2 * kv_heads), [(0, heads), (heads, kv_heads), (heads + kv_heads, kv_heads)]
    assert len(right) == 3 * devices
    for start, size in groups:  # queries, keys, values
        mine = [b for b in right if start - 0.1 <= (b[3] - 8) / scale < start + size - 0.1]
        assert sorted(b[0] for b in mine) == list(range(devices))
        several = copies if start else 1
        for rank, look, _, x, y, width, _ in mine:
            each = size / (devices // several)
            assert x - 8 == pytest.approx((start + rank // several * each) * scale, abs=1.2)
            assert width == pytest.approx(each * scale, abs=2.2)
            assert look == ("replicated" if several > 1 else "sharded")
            if several > 1:  # the copies lie under each other
                assert y == pytest.approx(min(b[4] for b in mine) + 15 * (rank % copies), abs=0.1)
    if devices == 1:
        assert wrong == []
        return
    widths = [sum(b[5] for b in wrong if b[0] == rank) for rank in range(devices)]
    rows = shard_sizes((heads + 2 * kv_heads) * 2, devices)
    assert widths == pytest.approx([n / 2 * scale for n in rows], abs=0.4)
    assert [b[0] for b in wrong] == sorted(b[0] for b in wrong)
    assert sum(widths) == pytest.approx(464, abs=1)


def test_names_and_numbers_stand_at_what_they_name():
    picture = draw_heads(8, 2, 4, head_size=2, positions=3)
    heads, right, wrong = parts(picture, 4)
    root, at = ElementTree.fromstring(picture.svg()), {}
    for node in root.iter(f"{SVG}text"):
        at.setdefault(node.text, []).append((float(node.get("x")), float(node.get("y"))))
    assert "heads of 2; cache of 3 positions" in at
    for rank, (own, common) in enumerate(zip(heads[::2], heads[1::2], strict=True)):
        for name, block in (("Q", own), ("K, V", common)):
            x, y = at[name][rank]
            assert x < block[3]
            assert block[4] < y < block[4] + block[6]
        ((_, y),) = at[f"rank {rank}"]
        assert own[4] < y < common[4] + common[6]
    for rank, _, written, *_, width, _ in right + wrong:
        assert written == ([str(rank)] if width > 8 else [])
    ends = [8 + 464 * n / 12 for n in (0, 8, 10, 12)]  # of the rows of the queries, keys and values
    for name, start, end in zip("QKV", ends, ends[1:], strict=False):
        in_both_bars = [x for x, _ in at[name]][-2:]
        assert in_both_bars == pytest.approx([(start + end) / 2] * 2, abs=0.1)
    lines = [n.get("d") for n in root.iter(f"{SVG}path") if n.get("stroke-width") == "1.5"]
    assert len(lines) == 2
    for line in lines:
        assert [float(x) for x in re.findall(r"M([\d.]+)", line)] == pytest.approx(ends, abs=0.1)


def test_what_is_wrong_is_said():
    assert "In 4 equal pieces, rank 0 would have no keys and no values." in draw_heads(12, 12, 4).desc
    assert "In 2 equal pieces, rank 0 would have no values." in draw_heads(12, 12, 2).desc
    alone = draw_heads(12, 12, 1)
    assert "equal pieces" not in alone.desc
    assert "wrong" not in alone.svg()


@pytest.mark.parametrize(("heads", "kv_heads", "devices"), [(4, 4, 1), (4, 4, 2), (4, 1, 2), (8, 2, 8)])
def test_the_cache_is_that_of_a_real_run(heads, kv_heads, devices):
    def program(group):
        layer, cache = ParallelSelfAttention(heads * 4, heads, group, kv_heads).bfloat16(), KVCache()
        layer(torch.zeros(1, 5, heads * 4, dtype=torch.bfloat16), cache)
        return cache.nbytes

    held = Cluster(devices).run(program)
    assert held[0] == 2 * max(1, kv_heads // devices) * 4 * 5 * 2
    picture = draw_heads(heads, kv_heads, devices, head_size=4, positions=5)
    for rank, size in enumerate(held):
        assert re.search(rf"rank {rank} holds [^;]* a cache of {readable(size, 'B')}[.;]", picture.desc)
    shown = [n.text for n in ElementTree.fromstring(picture.svg()).iter(f"{SVG}text") if (n.text or "").endswith("B")]
    assert shown == [readable(size, "B") for size in held]


def test_a_cache_that_no_machine_holds():
    size = 2 * 10 * 128 * 100_000_000 * 2  # keys and values of 10 heads, 16 bits each
    assert f"a cache of {readable(size, 'B')}" in draw_heads(80, 80, 8, head_size=128, positions=100_000_000).desc


def test_many_heads_are_named_by_their_range():
    drawn = blocks(draw_heads(32, 32, 1))
    assert [texts for _, _, texts, *_ in drawn[:2]] == [["heads 0 to 31"], ["heads 0 to 31"]]
    for rank, _, _, x, _, width, _ in blocks(draw_heads(96, 8, 8)):
        assert x + width <= 472.1, rank


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((12, 12, 5), "12 heads cannot be split over 5 devices: possible are 1, 2, 3, 4, 6, 12"),
        ((12, 5, 2), "12 heads cannot share 5 heads"),
        ((12, 4, 6), "4 heads of keys and values cannot be laid out over 6 devices"),
        ((16, 16, 16), "a picture shows 1 to 8 devices"),
    ],
)
def test_bad_input_is_named(arguments, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        draw_heads(*arguments)
