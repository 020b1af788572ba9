"""`draw_tensor`: which device holds which part of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from book.pictures.kit.blocks import MOST_CELLS, block, cells, hatches, label, tag
from book.pictures.kit.holders import Values, check_devices, holdings, pieces, shape_of, shape_text, values_of
from book.pictures.kit.legend import legend
from book.pictures.kit.svg import Picture
from lib.devices.counts import counted
from lib.parallel.sharding.placement import Partial, Placement, Replicate, Shard

WIDTH = 480  # narrow on purpose: the text of a wider picture would be too small on a phone
MARGIN = 8
TAG = 52


def draw_tensor(
    tensor: Any,
    name: str = "X",
    placement: Placement = Replicate(),  # noqa: B008 (frozen: one for all calls is safe)
    devices: int = 1,
    *,
    local: Sequence[Any] | None = None,
    values: bool = True,
    key: bool = True,
) -> Picture:
    """What each of `devices` devices holds of `tensor` (a tensor or a shape) under `placement`.

    `local` gives the tensors the devices really hold, one per rank, to show the numbers of partial sums.
    A 1-D tensor is drawn as one row. Of 3 or more dimensions the last two are drawn, or the split one and the
    last; the label has the full shape. Numbers are written into the cells of a tensor of at most 8 x 8.
    `key=False` leaves the legend out.

    Errors: ValueError for a split dimension out of range, a number of devices that does not fit a picture, or
    `local` without one tensor per rank; TypeError for what is no tensor, shape or placement.
    """
    shape, devices = shape_of(tensor), check_devices(devices)
    if local is not None and len(local) != devices:
        raise ValueError(f"local holds {len(local)} tensors for {devices} devices: pass one per rank")
    rows_dim, cols_dim = len(shape) - 2, len(shape) - 1
    if isinstance(placement, Shard):
        if not -len(shape) <= placement.dim < len(shape):
            raise ValueError(f"cannot draw {placement} of {name} {shape_text(shape)}: it has {len(shape)} dimensions")
        dim = placement.dim % len(shape)
        rows_dim = min(dim, rows_dim)
        ranges = pieces(shape[dim], devices)
        held = [(*shape[:dim], stop - start, *shape[dim + 1 :]) for start, stop in ranges]
        look = "sharded"
    elif isinstance(placement, Replicate | Partial):
        dim, held = None, [shape] * devices
        look = "replicated" if isinstance(placement, Replicate) else "partial"
    else:
        raise TypeError(f"placement must be Shard(dim), Replicate() or Partial(), got {placement!r}")

    def numbers(rank: int) -> Values | None:
        if not values:
            return None
        if local is not None:
            return values_of(local[rank])
        whole = None if look == "partial" else values_of(tensor)
        if whole is None or dim is None:
            return whole
        start, stop = ranges[rank]
        return [row[start:stop] for row in whole] if dim == cols_dim else whole[start:stop]

    extents = [(cells(s[rows_dim]) if len(s) > 1 else 1, cells(s[cols_dim])) for s in held]
    # A long dimension is drawn with a fixed number of cells in all, so its shards share them out.
    if dim is not None and shape[dim] > cells(shape[dim]):
        share = [max(n * cells(shape[dim]) // shape[dim], min(n, 1)) for n in (s[dim] for s in held)]
        extents = [(r, n) if dim == cols_dim else (n, c) for (r, c), n in zip(extents, share, strict=True)]
    texts = [numbers(rank) for rank in range(devices)]
    longest = max((len(v) for t in texts if t for row in t for v in row), default=0)
    across = cells(shape[cols_dim])
    lines = max(shape[rows_dim] if len(shape) > 1 else 1, shape[cols_dim]) <= MOST_CELLS
    cell = (max(26, 7.5 * longest + 10), 26) if longest else ((26, 22) if devices <= 4 else (16, 16))
    size = (min(cell[0], (WIDTH - 2 * MARGIN - 130) // max(across, 1)), cell[1] if lines else 10)

    stacked = dim is not None and dim != cols_dim
    lay = _stack if stacked else _flow
    body, bottom = lay(held, extents, size, look, lines, texts)
    if look == "partial":
        body.append(label(MARGIN, bottom + 8, f"added up, element by element: {name} {shape_text(shape)}"))
        bottom += 20
    explained, height = legend(MARGIN, bottom + 6, [look]) if key else ([], 0)
    argument = dim if isinstance(placement, Shard) else "" if getattr(placement, "op", "sum") == "sum" else placement.op
    where = f"{type(placement).__name__}({argument}) on {counted(devices, 'device')}"
    heading = [
        label(MARGIN, 24, f"{name} {shape_text(shape)}", bold=True, size=15),
        label(WIDTH - MARGIN, 24, where, "end"),
    ]
    meaning = {
        "sharded": f"cut along dim {dim}",
        "replicated": "whole on every device",
        "partial": "the sum of what the devices hold",
    }[look]
    defs = [hatches(range(devices))] if look == "partial" else []
    return Picture(
        WIDTH,
        bottom + height + 12,
        f"{name} {shape_text(shape)} as {where}",
        f"{name} {shape_text(shape)} is {meaning}: {holdings(held, texts)}.",
        [*defs, *heading, *body, *explained],
    )


def _flow(held, extents, size, look, lines, texts) -> tuple[list[Element], float]:
    """Blocks side by side, each under its rank and over its shape; a full line goes on below."""
    body: list[Element] = []
    plus = look == "partial"
    x, y, gap = MARGIN + 1.0, 44.0, 22 if plus else 6
    rows = max(r for r, _ in extents)
    step = 30 + rows * size[1] + 38
    for rank, (shape, (r, c)) in enumerate(zip(held, extents, strict=True)):
        width = max(c * size[0], TAG, 7.2 * len(shape_text(shape)))
        if x > MARGIN + 1 and x + width > WIDTH - MARGIN:
            x, y = MARGIN + 1.0, y + step
        top, middle = y + 30, y + 30 + rows * size[1] / 2
        body.append(tag(x, y + 11, rank, TAG))
        body.append(block(x, top, r, c, size, look, rank, lines, texts[rank]) or label(x, middle, "empty"))
        body.append(label(x, top + rows * size[1] + 18, shape_text(shape)))
        if plus and rank + 1 < len(held):
            body.append(label(x + width + gap / 2, middle + 5, "+", "middle", bold=True, size=16))
        x += width + gap
    return body, y + step


def _stack(held, extents, size, look, lines, texts) -> tuple[list[Element], float]:
    """Blocks under each other, each between its rank and its shape."""
    body: list[Element] = []
    y = 44.0
    left = MARGIN + TAG + 12
    right = left + max(c for _, c in extents) * size[0] + 12
    for rank, (shape, (r, c)) in enumerate(zip(held, extents, strict=True)):
        height = max(r * size[1], 24)
        body.append(tag(MARGIN + 1, y + height / 2, rank, TAG))
        body.append(
            block(left, y + (height - r * size[1]) / 2, r, c, size, look, rank, lines, texts[rank])
            or label(left, y + height / 2 + 4.5, "empty")
        )
        body.append(label(max(right, left + 50), y + height / 2 + 4.5, shape_text(shape)))
        y += height + 10
    return body, y + 2
