"""The picture of a grid shows the groups of the rank that is chosen, and says what it holds."""

import pytest

from book import draw_grid
from lib import GPTConfig, ParallelConfig, RankGrid

MODEL = GPTConfig(layers=8, hidden=64, heads=8)
CONFIG = ParallelConfig(dp=2, pp=2, cp=2, tp=2, micro_batches=2, chunks=2)


def drawn(rank, **options):
    """What is written in the cell of each rank."""
    picture = draw_grid(CONFIG, MODEL, rank, **options)
    cells = [node for part in picture.body for node in part.iter("g") if node.get("data-to")]
    return picture, {int(cell.get("data-to")): cell.find("text").text for cell in cells}


@pytest.mark.parametrize("order", [("pp", "dp", "cp", "tp"), ("tp", "cp", "dp", "pp")])
def test_partners_bear_the_name_of_their_axis(order):
    grid = RankGrid.of(CONFIG, order)
    for rank in (0, 9):
        picture, cells = drawn(rank, order=order)
        partners = {other: axis for axis in order for other in grid.group_of(rank, axis) if other != rank}
        assert cells == {
            other: f"{other} {partners[other]}" if other in partners else str(other) for other in range(16)
        }
        for axis in order:
            assert f"{axis} group {', '.join(map(str, grid.group_of(rank, axis)))}" in picture.desc


def test_what_a_rank_holds_is_said():
    picture, _ = drawn(9)
    assert picture.title == "Rank 9 of 16: pp 1, dp 0, cp 0, tp 1"
    for told in ("Layers 2 to 3 and 6 to 7 of 8, head", "Heads 4 to 7 of 8, and 1/2", "Stretches 0 and 3"):
        assert told in picture.desc
    assert "tp group 8, 9, inside a node" in picture.desc
    assert "pp group 1, 9, across 2 nodes" in picture.desc


def test_a_grid_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="128 devices in nodes of 4 cannot be drawn"):
        draw_grid(ParallelConfig(dp=128), MODEL, 0)
