"""`draw_head_scores`: the scores or weights of every head, as small heat maps, device by device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from torch import Tensor

from book.pictures.kit.blocks import label, tag
from book.pictures.kit.heat import above_diagonal, heatmap
from book.pictures.kit.holders import check_devices, shape_text
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture
from lib.devices.counts import counted

WIDTH, LEFT, MAPS, SIDE, GAP, ACROSS = 480, 8, 74, 92, 8, 4
MOST_HEADS, MOST_POSITIONS = 16, 24


def draw_head_scores(local: Sequence[Tensor], what: str = "weights") -> Picture:
    """One map per head: a row per query, a column per key, full color for the largest of all.

    `local` holds what each device computed, (heads/P, T, T) in rank order; `what` names it. Where all heads hide the
    keys after each query (0 or -inf), these are crossed out.

    Errors: ValueError for tensors of another or of different shapes, more than 16 heads, 24 positions or 8 devices.
    """
    check_devices(len(local), 8)
    shapes = {tuple(x.shape) for x in local}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != 3 or shape[1] != shape[2]:
        listed = ", ".join(shape_text(x.shape) for x in local)
        raise ValueError(f"the devices hold {listed}: pass (heads/P, T, T) of one sequence for each, all alike")
    heads, positions = shape[0] * len(local), shape[1]
    if not 1 <= heads <= MOST_HEADS or not 1 <= positions <= MOST_POSITIONS:
        raise ValueError(
            f"{counted(heads, 'head')} of {positions} positions do not fit this picture: at most {MOST_HEADS} heads "
            f"and {MOST_POSITIONS} positions"
        )
    tables = [x.detach().double().tolist() for x in local]
    later = above_diagonal(positions, positions)
    hidden = [
        value for maps in tables for table in maps for row, cut in zip(table, later, strict=True)
        for value, gone in zip(row, cut, strict=True) if gone
    ]  # fmt: skip
    masked = later if hidden and all(value in (0, -math.inf) for value in hidden) else None
    seen = [value for maps in tables for table in maps for value in _seen(table, masked)]
    if not all(map(math.isfinite, seen)):
        raise ValueError(f"the {what} hold a value that is not finite; only what a causal mask hides may be -inf")
    least, most = min(0.0, *seen), max(seen)
    title = f"{what.capitalize()} of {counted(heads, 'head')} on {counted(len(local), 'device')}"
    body: list[Element] = [
        label(LEFT, 24, title, bold=True, size=15),
        label(LEFT, 48, "In each map a row per query, a column per key."),
    ]
    y, told = 60.0, []
    for rank, maps in enumerate(tables):
        for i, table in enumerate(maps):
            if i and i % ACROSS == 0:
                y += SIDE + 30
            x, head = MAPS + (SIDE + GAP) * (i % ACROSS), rank * shape[0] + i
            if i == 0:
                body.append(tag(LEFT, y + 20 + SIDE / 2, rank))
            body.append(label(x, y + 14, f"head {head}"))
            cell = (SIDE / positions, SIDE / positions)
            body.append(heatmap(x, y + 20, table, cell, paint(rank).fill, False, most, least, masked))
            last = table[-1]  # the one query that sees all keys, with a causal mask too
            told.append(f"head {head} on rank {rank}: {max(last):.2f} at key {last.index(max(last))}")
        y += SIDE + 34
    notes = [f"Empty: {least:.2f}. Full color: {most:.2f}."]
    notes += ["Crossed out: keys after the query (causal mask)."] if masked else []
    body += [label(LEFT, y + 8 + 19 * i, note) for i, note in enumerate(notes)]
    desc = f"{title}, {positions} positions. The largest of the last query: {'; '.join(told)}."
    return Picture(WIDTH, y + 8 + 19 * len(notes), title, desc, body)


def _seen(table: Sequence[Sequence[float]], masked: Sequence[Sequence[bool]] | None) -> list[float]:
    if masked is None:
        return [value for row in table for value in row]
    return [v for row, cut in zip(table, masked, strict=True) for v, gone in zip(row, cut, strict=True) if not gone]
