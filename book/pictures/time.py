"""`draw_predictions`: predicted beside measured times, a point for every run. `draw_step_time`: where a step's goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from book.pictures.bars import draw_bars
from book.pictures.kit.axis import log_ticks, readable
from book.pictures.kit.blocks import label
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element, number

SIDE, LEFT, TOP = 320, 60, 54
Pairs = Sequence[tuple[float, float]]

GROUPS = {
    "computing": ("products", "elementwise", "head"),
    "computed anew": ("recomputation",),
    "sending": ("tensor parallel", "data parallel", "pipeline sends"),
    "bubble": ("bubble",),
    "host too slow": ("host",),
    "update": ("optimizer", "accumulation"),
}


def grouped(terms: Mapping[str, float]) -> dict[str, float]:
    """The terms of a step's time in six groups; what no group names is an error."""
    known = {term for group in GROUPS.values() for term in group}
    if strange := sorted(terms.keys() - known):
        raise ValueError(f"no group has the term {', '.join(strange)}: the terms are those of lib.costs.time")
    return {name: sum(terms.get(term, 0.0) for term in group) for name, group in GROUPS.items()}


def draw_step_time(steps: Mapping[str, Mapping[str, float]], title: str, most: float | None = None) -> Picture:
    """A bar for each step, in seconds, divided into where its time goes. `most` is the end of the scale."""
    return draw_bars({name: grouped(terms) for name, terms in steps.items()}, title, "s", most=most)


def draw_predictions(tables: Mapping[str, Pairs], title: str, band: float = 0.1, unit: str = "s") -> Picture:
    """Each table's (measured, predicted) pairs as points of one color, both axes logarithmic and alike.

    On the line in the middle a prediction is right; between the dashed ones it is less than `band` off.
    Errors: ValueError for no pairs, or a number that is not above 0.
    """
    every = [pair for pairs in tables.values() for pair in pairs]
    if not every or min(map(min, every)) <= 0:
        raise ValueError("predictions are drawn for pairs (measured, predicted) of numbers above 0; give one or more")
    low, high = min(map(min, every)) / 1.3, max(map(max, every)) * 1.3
    place = lambda value: (math.log(value) - math.log(low)) / (math.log(high) - math.log(low)) * SIDE  # noqa: E731
    across, up = (lambda value: LEFT + place(value)), (lambda value: TOP + SIDE - place(value))
    body = [label(8, 20, title, bold=True, size=15), label(8, 42, "predicted", size=12)]
    grid = ""
    for mark in log_ticks(low, high, 6):
        grid += f"M{LEFT} {number(up(mark))}h{SIDE}M{number(across(mark))} {TOP}v{SIDE}"
        body.append(label(LEFT - 6, up(mark) + 4, readable(mark, unit), "end", size=12))
        body.append(label(across(mark), TOP + SIDE + 16, readable(mark, unit), "middle", size=12))
    body.append(element("path", d=grid, stroke="currentColor", stroke_opacity=".2", fill="none"))
    for factor, dashes in ((1.0, None), (1 + band, "4 4"), (1 / (1 + band), "4 4")):
        first, last = (low, high / factor) if factor >= 1 else (low / factor, high)
        ends = (
            f"M{number(across(first))} {number(up(first * factor))}L{number(across(last))} {number(up(last * factor))}"
        )
        body.append(element("path", d=ends, stroke="currentColor", stroke_dasharray=dashes, fill="none"))
    told = []
    for i, (name, pairs) in enumerate(tables.items()):
        dots = "".join(f"M{number(across(x))} {number(up(y))}h0" for x, y in pairs)
        look = {"stroke": paint(i).ink, "stroke_width": 6 if len(pairs) < 200 else 4, "stroke_linecap": "round"}
        body.append(element("path", d=dots, fill="none", stroke_opacity=".7", data_table=name, **look))
        body.append(element("path", d=f"M{LEFT + SIDE + 22} {TOP + 10 + 24 * i}h0", fill="none", **look))
        body.append(label(LEFT + SIDE + 34, TOP + 14.5 + 24 * i, name))
        near = sum(abs(y / x - 1) <= band for x, y in pairs)
        told.append(f"{name}: {near} of {len(pairs)} within {band:.0%}")
    body.append(label(LEFT + SIDE / 2, TOP + SIDE + 36, "measured", "middle", size=12))
    body.append(label(LEFT + SIDE + 16, TOP + SIDE - 22, f"dashed: {band:.0%} off", size=12))
    desc = f"{title}. Predicted over measured, a point for each run. {'; '.join(told)}."
    return Picture(LEFT + SIDE + 170, TOP + SIDE + 46, title, desc, body)
