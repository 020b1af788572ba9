"""A heat map: numbers as cells of one color, the stronger the larger."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from book.pictures.kit.blocks import label
from book.pictures.kit.svg import element, number

STRONGEST = 0.33  # opacity under digits: they stay readable on every device's color, on light and dark paper


def heatmap(
    x: float,
    y: float,
    values: Sequence[Sequence[float]],
    size: tuple[float, float],
    color: str = "currentColor",
    digits: bool = True,
    most: float = 1.0,
    least: float = 0.0,
    masked: Sequence[Sequence[bool]] | None = None,
) -> Element:
    """Cells of `size` (width, height) from (x, y): empty at `least`, full at `most`; what is `masked` is crossed out.

    With `digits`, two decimals stand in the cells.
    """
    w, h = size
    rows, cols = len(values), len(values[0])
    hidden = masked or [[False] * cols for _ in range(rows)]
    cells, texts, crosses = [], [], ""
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            left, top = x + c * w, y + r * h
            if hidden[r][c]:
                crosses += f"M{number(left + 3)} {number(top + h - 3)}L{number(left + w - 3)} {number(top + 3)}"
                continue
            share = (value - least) / (most - least) if most > least else 0.0
            strength = round(share * (STRONGEST if digits else 1), 3)
            cells.append(
                element("rect", x=left, y=top, width=w, height=h, fill_opacity=f"{strength:g}", data_value=f"{value:g}")
            )
            if digits:
                texts.append(label(left + w / 2, top + h / 2 + 4.5, f"{value:.2f}", "middle"))
    inner = "".join(f"M{number(x)} {number(y + r * h)}h{number(cols * w)}" for r in range(rows + 1))
    inner += "".join(f"M{number(x + c * w)} {number(y)}v{number(rows * h)}" for c in range(cols + 1))
    strokes = {"stroke": "currentColor", "fill": "none", "stroke_opacity": ".35", "stroke_width": 1}
    return element(
        "g",
        element("g", *cells, fill=color),
        element("path", d=inner + crosses, **strokes),
        element("g", *texts),
        data_look="heat",
    )


def above_diagonal(rows: int, cols: int) -> list[list[bool]]:
    """The cells that a causal mask hides: keys that come after the query."""
    return [[c > r + cols - rows for c in range(cols)] for r in range(rows)]
