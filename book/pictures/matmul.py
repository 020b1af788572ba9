"""`draw_matmul`: X times W on several devices, by columns or by rows, from the shards to the collective."""

from __future__ import annotations

from typing import Any, Literal
from xml.etree.ElementTree import Element

from book.pictures.kit.blocks import (
    arrow,
    block,
    cells,
    copies,
    ghost,
    hatches,
    label,
    tag,
)
from book.pictures.kit.holders import check_devices, holdings, indexed, pieces, shape_of, shape_text
from book.pictures.kit.legend import legend
from book.pictures.kit.svg import Picture, element, number
from lib.devices.counts import counted

WIDTH = 480
MARGIN = 8
LEFT = 80  # where X begins, right of the rank's tag
GAP = 34  # room for the signs between the matrices
TOP = 22  # from the labels of a row to its matrices
BUS = 18  # from the outputs to the line on which they travel


def draw_matmul(
    x: Any,
    w: Any,
    *,
    devices: int,
    split: Literal["column", "row"],
    gather: bool = True,
    names: tuple[str, str, str] = ("X", "W", "Y"),
    bytes_per_device: int | None = None,
    key: bool = True,
) -> Picture:
    """Every device's share of Y = X W, and how the shares become Y.

    `x` of shape (batch, in) and `w` of shape (in, out) are tensors or shapes. split="column" cuts W along dim
    1: each device makes whole columns of Y. split="row" cuts W along dim 0 and X along dim 1: each device
    makes a partial sum of all of Y. `gather=False` leaves the outputs where they are, without the collective.
    `bytes_per_device` (what each device sends in the collective) is written beside the arrow. `key=False`
    leaves the legend out.

    Errors: ValueError for shapes that do not multiply, another split, or devices out of 1..64.
    """
    (batch, inner), (rows, out) = _two(shape_of(x), "x"), _two(shape_of(w), "w")
    if inner != rows:
        raise ValueError(f"x {shape_text((batch, inner))} times w {shape_text((rows, out))}: {inner} is not {rows}")
    if split not in ("column", "row"):
        raise ValueError(f'split must be "column" or "row", got {split!r}')
    devices, column = check_devices(devices), split == "column"
    ranges = pieces(out if column else inner, devices)
    X, W, Y = names

    # Geometry. A dimension is as long in pixels as it has cells, so shards sit where they belong in the
    # whole.
    m, k, n = cells(batch), cells(inner), cells(out)
    lines = max(batch, inner, out) <= max(m, k, n)
    nest = 4 * (min(devices, 8) - 1) if gather else 0  # the outlines of the copies around the result
    # Room for 4 or 8 outlines, so that the matrices keep their size while the reader changes the device
    # count.
    side = min(24, (WIDTH - LEFT - 2 * GAP - BUS - MARGIN - (12 if devices <= 4 else 28)) // max(k + 2 * n, 1))
    tall = max(6, min(side, (96 if devices <= 4 else 56) // max(m, k, 1)))
    # A column of the picture is as wide as its matrix or its longest label.
    x_room, w_room = (
        max(c * side, 7.3 * (len(shape_text(s)) + 3)) for c, s in ((k, (batch, inner)), (n, (inner, out)))
    )
    lefts = (LEFT, LEFT + x_room + GAP, LEFT + x_room + w_room + 2 * GAP)
    right = lefts[2] + n * side + nest + BUS
    full = max(WIDTH, right + MARGIN, lefts[2] + 7.3 * (len(shape_text((batch, out))) + 3))
    band = max(m, k) * tall
    body: list[Element] = []

    def piece(left: float, shape: tuple[int, int], cut: int | None, rank: int, look: str) -> list[Element | None]:
        """One device's part of a matrix, inside the outline of the whole; `cut` is the dim that is split."""
        r, c = cells(shape[0]) * tall, cells(shape[1]) * side
        start, stop = ranges[rank] if cut is not None else (0, 0)
        at = [0.0, 0.0, float(r), float(c)]  # top, left, height, width in pixels
        if cut is not None:
            at[cut] = at[cut + 2] * start / max(shape[cut], 1)
            at[cut + 2] *= (stop - start) / max(shape[cut], 1)
        grid = [cells(shape[0]), cells(shape[1])]
        if cut is not None:
            grid[cut] = stop - start if lines else min(stop - start, 1)
        whole = ghost(left, TOP, c, r) if cut is not None and devices > 1 else None
        cell = at[3] / max(grid[1], 1), at[2] / max(grid[0], 1)
        return [whole, block(left + at[1], TOP + at[0], *grid, cell, look, rank, lines)]

    # One row per device: its X, its W, its output, aligned with all others.
    y, mids, step = 56.0, [], band + (40 if column else 46)
    held: list[tuple[int, int]] = []
    for rank, (start, stop) in enumerate(ranges):
        width, middle = stop - start, TOP + band / 2
        x_shape, w_shape = ((batch, inner), (inner, width)) if column else ((batch, width), (width, out))
        y_shape = (batch, width) if column else (batch, out)
        held.append(w_shape)
        mids.append(y + TOP + m * tall / 2)
        row = [
            tag(MARGIN, middle, rank),
            *piece(lefts[0], (batch, inner), None if column else 1, rank, "replicated" if column else "sharded"),
            *piece(lefts[1], (inner, out), 1 if column else 0, rank, "sharded"),
            *piece(lefts[2], (batch, out), 1 if column else None, rank, "sharded" if column else "partial"),
        ]
        own = (X if column else indexed(X, rank), indexed(W, rank), indexed(Y, rank))
        for left, text, shape in zip(lefts, own, (x_shape, w_shape, y_shape), strict=True):
            row.append(label(left - 1, 14, f"{text} {shape_text(shape)}"))
        for left, sign in ((lefts[1], "×"), (lefts[2], "=")):
            row.append(label(left - GAP / 2, middle + 5, sign, "middle", size=16))
        if not column and rank + 1 < devices:
            row.append(label(lefts[2] + n * side / 2, TOP + (band + m * tall) / 2 + 17, "+", "middle", True, 17))
        body.append(element("g", *row, transform=f"translate(0 {number(y)})"))
        y += step

    # The collective: every output joins the line at the right, and the line leads to the whole.
    verb = "all-gather" if column else "all-reduce"
    how = "side by side: concat along dim 1" if column else "element by element: sum"
    if gather:
        top = y + 34 + nest
        if devices > 1:
            stubs = "".join(f"M{number(lefts[2] + n * side + 5)} {number(mid)}H{number(right)}" for mid in mids)
            body.append(element("path", d=stubs, fill="none", stroke="currentColor", stroke_width=2))
            goal = top + m * tall / 2
            body.append(arrow((right, mids[0] - 1), (right, goal), (lefts[2] + n * side + nest + 4, goal)))
            notes = [verb, how, "then whole on every device"] + (
                [f"each device sends {bytes_per_device:,} bytes"] if bytes_per_device is not None else []
            )
        else:
            notes = ["one device", "nothing to send"]
        for i, note in enumerate(notes):
            body.append(label(MARGIN, top + 12 + 19 * i, note, bold=i == 0, size=15 if i == 0 else None))
        body.append(label(lefts[2] - nest, top - nest - 8, f"{Y} {shape_text((batch, out))}", bold=True))
        body.append(copies(lefts[2], top, (m, n), (side, tall), range(min(devices, 8)), lines))
        y = max(top + m * tall + nest, top + 19 * len(notes)) + 16
    looks = ["sharded", "replicated"] if column or gather else ["sharded"]
    looks += ([] if column else ["partial"]) + (["arrow"] if gather and devices > 1 else [])
    explained, height = legend(MARGIN, y, looks) if key else ([], 0)

    what = f"{X} {shape_text((batch, inner))} times {W} {shape_text((inner, out))}"
    work = (
        f"Every device holds all of {X} and makes whole columns of {Y}."
        if column
        else f"{X} is cut along dim 1 to match, and every device makes a partial sum of all of {Y}."
    )
    joined = "sets the outputs side by side" if column else "adds the outputs element by element"
    end = f"An {verb} {joined}: then every device holds {Y} {shape_text((batch, out))}."
    if devices == 1:
        work, end = (
            f"One device does the whole product and holds {Y} {shape_text((batch, out))}.",
            "Nothing is sent.",
        )
    elif not gather:
        end = "The outputs stay where they are."
    desc = f"{what}, split by {split}s on {counted(devices, 'device')}. Of {W}, {holdings(held)}. {work} {end}"
    heading = [
        label(MARGIN, 24, f"{Y} = {X} {W}", bold=True, size=15),
        label(full - MARGIN, 24, f"{W} split by {split}s, {counted(devices, 'device')}", "end"),
    ]
    defs = [] if column else [hatches(range(devices))]
    return Picture(
        full,
        y + height + 8,
        f"{Y} = {X} {W}, {split} split on {counted(devices, 'device')}",
        desc,
        [*defs, *heading, *body, *explained],
    )


def _two(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(f"{name} must have 2 dimensions to be drawn as a matrix, got {shape_text(shape)}")
    return shape[0], shape[1]
