"""The fused weight of a gated MLP and rotary positions: drawn is what the layers have and do."""

import math
import re

import pytest
import torch

from book import draw_gated, draw_rotary
from lib import GatedMLP
from lib.devices import Cluster
from lib.parallel.llama.rotary import turn_of


def ranks(picture, look):
    return [int(part.get("data-rank")) for part in picture.body if part.get("data-look") == look]


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_columns_are_colored_by_the_device_whose_layer_has_them(devices):
    def program(group):
        mlp = GatedMLP(4, 8, group)
        whole = torch.arange(16.0)[:, None].expand(-1, 4)
        piece = mlp.gate_up.layout["weight"].piece(whole, group.size, group.rank)
        assert piece.shape == mlp.gate_up.weight.shape
        return piece[:, 0].int().tolist()

    owner = {column: rank for rank, columns in enumerate(Cluster(devices).run(program)) for column in columns}
    picture = draw_gated(devices)
    drawn = ranks(picture, "sharded")
    assert drawn == [owner[column] for column in range(16)] + [owner[i] for i in range(8)]
    assert "every number can be made" in picture.desc


@pytest.mark.parametrize(("devices", "able"), [(1, 8), (2, 0), (4, 0), (8, 0)])
def test_cut_as_one_no_device_has_gate_and_up_of_one_number(devices, able):
    picture = draw_gated(devices, "as one")
    assert len(ranks(picture, "sharded")) == 16 + able
    assert len([part for part in picture.body if part.get("data-look") == "missing"]) == 8 - able
    assert ("no number has its gate and its up" in picture.desc) == (not able)


def hands(picture):
    """(rank, angle) of every clock."""
    found = []
    for part in picture.body:
        if part.get("data-look") == "clock":
            x0, y0, x1, y1 = map(float, re.findall(r"-?[\d.]+", part.find("path").get("d")))
            found.append((int(part.get("data-rank")), math.atan2(y0 - y1, x1 - x0)))
    return found


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_hands_stand_at_the_angles_of_the_layer(devices):
    cos, sin = turn_of(torch.arange(16), 4, (16 / (2 * math.pi)) ** 2)
    expected = torch.atan2(sin[:, 1], cos[:, 1]).tolist()
    assert expected[1] == pytest.approx(2 * math.pi / 16, rel=1e-5)
    each = 16 // devices
    for positions, wanted in (("of the whole text", expected), ("of the piece", expected[:each] * devices)):
        drawn = hands(draw_rotary(devices, positions))
        assert [rank for rank, _ in drawn] == [token // each for token in range(16)]
        off = [abs(math.remainder(angle - right, 2 * math.pi)) for (_, angle), right in zip(drawn, wanted, strict=True)]
        assert max(off) < 0.02


def test_what_is_said():
    assert "rank 1 has tokens 8 to 15, turned by positions 8 to 15" in draw_rotary(2).desc
    assert "Token 8 is turned as token 0" in draw_rotary(2, "of the piece").desc
    assert "rank 0 has gate 0 to 7 and no up" in draw_gated(2, "as one").desc


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda: draw_gated(3), "inner=8 cannot be divided over 3 devices"),
        (lambda: draw_gated(9), "1 to 8 devices"),
        (lambda: draw_gated(2, "somehow"), "cut='somehow' must be one of 'each block', 'as one'"),
        (lambda: draw_rotary(3), "16 tokens cannot be divided over 3 devices"),
        (lambda: draw_rotary(2, "of the moon"), "positions='of the moon' must be one of"),
    ],
)
def test_what_cannot_be_drawn(draw, says):
    with pytest.raises(ValueError, match=".") as refused:
        draw()
    assert says in str(refused.value)
