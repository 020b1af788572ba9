"""Queues of experts and shares of devices: a cell for each row, in its device's color; drops stand behind the line."""

import pytest
import torch

from book import draw_experts, draw_load
from lib.parallel.experts.capacity import count_rows, keep_first


@pytest.mark.parametrize("capacity", [None, 1, 3])
@pytest.mark.parametrize("devices", [1, 3])
def test_a_cell_for_each_choice(devices, capacity):
    chosen = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(i))[:2] for i in range(9)])
    kept = chosen if capacity is None else keep_first(chosen, count_rows(chosen, 5)[None], 0, capacity)[0]
    picture = draw_experts(chosen.tolist(), 5, devices, capacity, kept.tolist())
    cells = [part for part in picture.body if part.get("data-row")][9:]  # the first are the tokens themselves
    assert len(cells) == chosen.numel()
    dropped = [cell for cell in cells if cell.get("data-row") == "dropped"]
    assert len(dropped) == int((kept < 0).sum())
    assert f"{len(dropped)} dropped" in picture.desc
    for cell in cells:
        token = int(cell.find("text").text)
        assert int(cell.get("data-rank")) == token * devices // 9
    moved = sum(int(e) * devices // 5 != t * devices // 9 for t, row in enumerate(kept.tolist()) for e in row if e >= 0)
    if devices == 1:
        assert moved == len([cell for cell in cells if cell.get("data-row") == "sent"]) == 0
    line = [part for part in picture.body if part.get("data-limit")]
    assert len(line) == int(capacity is not None)
    for cell in cells if capacity else ():
        left = float(cell.find("rect").get("x"))
        behind = left > float(line[0].get("d").split()[0][1:])
        assert behind == (cell.get("data-row") == "dropped")


def test_loads_are_bands_as_high_as_shares():
    rows = [[1, 3], [2, 2], [4, 0]]
    bands = [part for part in draw_load(rows, "t").body if part.tag == "path" and part.get("data-rank")]
    points = [[tuple(map(float, p.split())) for p in band.get("d")[1:-1].split("L")] for band in bands]
    for rank, around in enumerate(points):
        for step, (low, high) in enumerate(zip(around, reversed(around), strict=True)):
            if step < 3:
                assert (low[1] - high[1]) / 160 == pytest.approx(rows[step][rank] / 4, abs=0.01)
    assert "1.50 times an even share at first, 2.00 at last" in draw_load(rows, "t").desc


@pytest.mark.parametrize(
    "draw",
    [
        lambda: draw_experts([[0]] * 19, 1, 1),
        lambda: draw_experts([[0]], 4, 2),
        lambda: draw_experts([[0], [1]], 2, 9),
        lambda: draw_load([[1, 2]], "t"),
        lambda: draw_load([[1, 2], [1]], "t"),
        lambda: draw_load([[1, 2], [0, 0]], "t"),
    ],
)
def test_what_cannot_be_drawn(draw):
    with pytest.raises(ValueError, match=r"rows|devices|steps"):
        draw()
