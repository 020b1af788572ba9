"""`draw_plans`: the planner's answer, a bar for each plan: where its time goes, or what its devices hold."""

from __future__ import annotations

from collections.abc import Mapping

from book.pictures.bars import draw_bars
from book.pictures.kit.svg import Picture, stack
from book.pictures.time import grouped
from lib.costs.plans_that_fit import Proposal


def short(plan_of: Proposal) -> str:
    """The grid in a few letters: "TP 4 · PP 2 · DP 8"."""
    data, tensor, pipeline = plan_of.grid
    return f"TP {tensor} · PP {pipeline} · DP {data}"


def draw_plans(plans: Mapping[str, Proposal], title: str, memory: float, ends: tuple[float, float]) -> Picture:
    """Two bars for each named plan: a step's seconds, and the bytes of its fullest device beside the `memory` that it
    has. `ends` are those of the two scales, so that several pictures can be compared."""
    names = {name: f"{name}: {short(one)}" for name, one in plans.items()}
    seconds = {names[name]: grouped(one.terms) for name, one in plans.items()}
    room = {}
    for name, one in plans.items():
        parts = one.room.parts
        room[names[name]] = {
            "model state": (parts["parameters"] + parts["gradients"] + parts["optimizer"]) / 1e9,
            "activations": (parts["activations"] + parts["logits"] + parts["working"]) / 1e9,
            "reserve": parts["reserve"] / 1e9,
        }
    return stack(
        title,
        draw_bars(seconds, title, "s", most=ends[0]),
        draw_bars(room, "A device holds", "GB", most=ends[1], limit=(memory / 1e9, f"{memory / 1e9:g} GB")),
    )
