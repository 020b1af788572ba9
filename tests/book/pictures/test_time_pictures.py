"""Predictions beside measurements, where a step's time goes, and the planner's plans: what is drawn is what is said."""

import re

import pytest

from book.pictures.planner import draw_plans
from book.pictures.time import draw_predictions, draw_step_time, grouped
from lib.costs.plans_that_fit import best_grids, machine_named, propose
from lib.costs.shapes import ModelShape


def test_a_point_for_every_run_and_those_near_the_line_are_counted():
    picture = draw_predictions({"A": [(1.0, 1.05), (2.0, 3.0)], "B": [(10.0, 9.5)]}, "Runs")
    assert "A: 1 of 2 within 10%; B: 1 of 1 within 10%" in picture.desc
    dots = {node.get("data-table"): node.get("d") for node in picture.body if node.get("data-table")}
    assert {name: path.count("M") for name, path in dots.items()} == {"A": 2, "B": 1}
    (x, y), _ = (tuple(map(float, at.split())) for at in re.findall(r"M([\d.]+ [\d.]+)h0", dots["A"]))
    assert (x - 60) == pytest.approx(54 + 320 - y, abs=12)  # 5 % above the line in the middle


@pytest.mark.parametrize("tables", [{}, {"A": []}, {"A": [(0.0, 1.0)]}])
def test_what_cannot_be_drawn_is_refused(tables):
    with pytest.raises(ValueError, match="numbers above 0"):
        draw_predictions(tables, "Runs")


def test_groups_lose_no_second():
    shape, machine = ModelShape.preset("llama-3-8b"), machine_named("H100")
    plans = best_grids(propose(shape, 16, 64, 4096, machine))
    for one in plans:
        assert sum(grouped(one.terms).values()) == pytest.approx(one.seconds)
    with pytest.raises(ValueError, match="no group has the term waiting"):
        grouped({"waiting": 1.0})
    picture = draw_step_time({"first": plans[0].terms}, "A step")
    assert f"first: {plans[0].seconds:,.4g} s" in picture.desc
    both = draw_plans({"plan 1": plans[0]}, "Plans", 80e9, (20, 100))
    assert "TP" in both.desc
    assert "80 GB" in both.desc
