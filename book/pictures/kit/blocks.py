"""The pieces every picture is made of: a block of cells, a rank's tag, a label, an arrow, the legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal
from xml.etree.ElementTree import Element

from book.pictures.kit.language import PAPER, paint
from book.pictures.kit.svg import LOCAL_ID, element, number

Look = Literal["sharded", "replicated", "partial"]
MOST_CELLS = 12  # a longer dimension is drawn as if it had this many cells, and without the lines between them


def cells(length: int) -> int:
    """How many cells a dimension of `length` is drawn with."""
    return min(length, MOST_CELLS)


def block(
    x: float,
    y: float,
    rows: int,
    cols: int,
    size: tuple[float, float],
    look: Look,
    rank: int,
    lines: bool = True,
    values: Sequence[Sequence[str]] | None = None,
) -> Element | None:
    """`rows` x `cols` cells of `size` (width, height) that device `rank` holds, top left corner at (x, y).

    None if it has no cells. `values` are written into the cells; `lines=False` leaves the inner lines out.
    """
    if not rows or not cols:
        return None
    p, (w, h) = paint(rank), size
    on_fill = look == "sharded"
    group = element(
        "g",
        element("rect", x=x, y=y, width=cols * w, height=rows * h),
        # The inner lines are drawn by one path: a picture stays small however many cells it has.
        element(
            "path",
            d=_inner(x, y, rows, cols, w, h),
            stroke_opacity=".45",
            stroke=p.text if on_fill else p.ink,
            stroke_width=1,
        )
        if lines and rows * cols > 1
        else None,
        data_rank=rank,
        data_look=look,
        data_cells=f"{rows}x{cols}",
        stroke=p.ink,
        stroke_width=None if on_fill else 2,
        fill={"sharded": p.fill, "replicated": "none", "partial": f"url(#{LOCAL_ID}hatch{rank})"}[look],
    )
    if values is not None:
        # Over a hatch the digits get a halo of paper, so that no stroke crosses them.
        halo = (
            {"stroke": PAPER, "stroke_width": 4, "paint_order": "stroke"} if look == "partial" else {"stroke": "none"}
        )
        group.append(
            element(
                "g",
                *[
                    element("text", value, x=x + (c + 0.5) * w, y=y + (r + 0.5) * h + 4.5)
                    for r, row in enumerate(values)
                    for c, value in enumerate(row)
                ],
                fill=p.text if on_fill else "currentColor",
                text_anchor="middle",
                **halo,
            )
        )
    return group


def _inner(x: float, y: float, rows: int, cols: int, w: float, h: float) -> str:
    across = "".join(f"M{number(x)} {number(y + i * h)}h{number(cols * w)}" for i in range(1, rows))
    return across + "".join(f"M{number(x + j * w)} {number(y)}v{number(rows * h)}" for j in range(1, cols))


def ghost(x: float, y: float, width: float, height: float) -> Element:
    """Where the rest of the tensor would be: what this device does NOT hold."""
    return element(
        "rect",
        x=x,
        y=y,
        width=width,
        height=height,
        fill="none",
        stroke="currentColor",
        stroke_opacity=".5",
        stroke_dasharray="2 4",
    )


def copies(
    x: float,
    y: float,
    grid: tuple[int, int],
    size: tuple[float, float],
    ranks: Sequence[int],
    lines: bool = True,
) -> Element:
    """A tensor of `grid` (rows, cols) cells of `size` that every rank in `ranks` holds: one outline each,
    nested."""
    (rows, cols), (w, h) = grid, size
    frames = [
        element(
            "rect",
            x=x - 4 * i,
            y=y - 4 * i,
            width=cols * w + 8 * i,
            height=rows * h + 8 * i,
            rx=2 * i,
            stroke=paint(rank).ink,
            data_rank=rank,
            data_look="replicated",
        )
        for i, rank in enumerate(ranks)
    ]
    inner = element(
        "path", d=_inner(x, y, rows, cols, w, h), stroke="currentColor", stroke_width=1, stroke_opacity=".3"
    )
    return element("g", inner if lines and rows * cols > 1 else None, *frames, fill="none", stroke_width=2.5)


def stripes(id_: str, color: str) -> Element:
    """The pattern of a partial sum; a block refers to it as `url(#id)`."""
    line = element("path", d="M0 0v6", stroke_width=3, stroke_opacity=".6", stroke=color)
    turned = {"patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)"}
    return element("pattern", line, width=6, height=6, **turned, id=LOCAL_ID + id_)


def hatches(ranks: Iterable[int]) -> Element:
    """The stripes of partial sums, one pattern per device."""
    return element("defs", *[stripes(f"hatch{rank}", paint(rank).ink) for rank in ranks])


def tag(x: float, y: float, rank: int, width: float = 56) -> Element:
    """The name plate of a device, its middle at height y: the one place where a color is tied to a rank in
    words."""
    p = paint(rank)
    return element(
        "g",
        element("rect", x=x, y=y - 11, width=width, height=22, rx=4, fill=p.fill, stroke=p.ink),
        element(
            "text",
            f"rank {rank}" if width > 40 else str(rank),
            x=x + width / 2,
            y=y + 4.5,
            fill=p.text,
            text_anchor="middle",
        ),
    )


def label(
    x: float, y: float, text: str, anchor: str | None = None, bold: bool = False, size: float | None = None
) -> Element:
    """Text with its baseline at (x, y); anchor "middle" or "end" centers it or ends it there."""
    return element("text", text, x=x, y=y, text_anchor=anchor, font_weight=600 if bold else None, font_size=size)


def arrow(*points: tuple[float, float]) -> Element:
    """A line through `points` with its head at the last one: data moves along it."""
    (x0, y0), (x, y) = points[-2:]
    dx, dy = (
        (x > x0) - (x < x0),
        (y > y0) - (y < y0),
    )  # arrows run along the grid, so the head has four directions
    line = "M" + "L".join(f"{number(a)} {number(b)}" for a, b in (*points[:-1], (x - 7 * dx, y - 7 * dy)))
    left, right = (x - 9 * dx - 5 * dy, y - 9 * dy - 5 * dx), (x - 9 * dx + 5 * dy, y - 9 * dy + 5 * dx)
    head = "M" + "L".join(f"{number(a)} {number(b)}" for a, b in ((x, y), left, right)) + "z"
    return element(
        "g",
        element("path", d=line, fill="none", stroke="currentColor", stroke_width=2),
        element("path", d=head),
        data_look="arrow",
    )
