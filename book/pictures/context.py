"""`draw_context`: a causal mask, cut over devices: who computes what, at which hop of the ring, and who stands idle."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

import torch

from book.pictures.kit.blocks import label
from book.pictures.kit.holders import check_devices
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element, number
from lib.costs.context import pairs_by_hop
from lib.devices.counts import counted
from lib.parallel.context.cut import Order, token_places

WIDTH, LEFT, TOP, SIDE = 480, 34, 82, 400  # of the square of the mask
LANE = 24
MOST_TOKENS = 32


def draw_context(
    order: Order, devices: int, tokens: int = 16, hop: int | None = None, documents: Sequence[int] = ()
) -> Picture:
    """The causal mask of `tokens` tokens: rows are queries, columns keys, each cell in the color of the device that
    computes it, with the hop at which it does. Below, the work of each device, hop by hop, and its idle time.

    With `hop`, what is computed at that hop stands out, and what comes later is empty. `documents` are the lengths of
    texts that are packed into one sequence: a token sees only its own.

    Errors: ValueError for more than 8 devices, more than 32 tokens, fewer tokens than devices, or documents of another
    length.
    """
    check_devices(devices, 8)
    if tokens > MOST_TOKENS:
        raise ValueError(f"a picture shows up to {MOST_TOKENS} tokens, got tokens={tokens}")
    lengths = tuple(documents) or (tokens,)
    if sum(lengths) != tokens:
        raise ValueError(f"documents of {lengths} tokens are not a sequence of tokens={tokens}")
    document = [which for which, length in enumerate(lengths) for _ in range(length)]
    pieces = [token_places(tokens, devices, rank, order) for rank in range(devices)]
    owner = {i: rank for rank, piece in enumerate(pieces) for part in piece for i in part}
    cell = SIDE / tokens
    name = order if isinstance(order, str) else "each document in zigzag"
    title = f"{name}, {counted(devices, 'device')}" + ("" if hop is None else f", hop {hop}")
    body: list[Element | None] = [label(8, 24, title, bold=True, size=15)]
    body += [label(LEFT, 48, "keys, and who has them", size=12), *_owners(owner, tokens, cell)]
    body += _cells(owner, document, devices, cell, hop)
    bottom = TOP + SIDE + 26
    work = pairs_by_hop(tokens, devices, order, documents=torch.tensor(document))
    body += _lanes(work, bottom, hop)
    bottom += LANE * devices + 18
    busiest = max(map(sum, work))
    idle = 1 - sum(map(sum, work)) / devices / busiest
    body.append(label(8, bottom, f"Idle while the busiest device works: {idle:.0%} of all time.", size=12))
    return Picture(
        WIDTH, bottom + 12, title, _says(name, devices, lengths, work, hop), [x for x in body if x is not None]
    )


def _owners(owner: dict[int, int], tokens: int, cell: float) -> list[Element]:
    """A strip above and one beside the mask: who holds the token."""
    strips = []
    for i in range(tokens):
        p = paint(owner[i])
        strips.append(element("rect", x=LEFT + i * cell, y=TOP - 22, width=cell, height=16, fill=p.fill, stroke=p.ink))
        strips.append(element("rect", x=LEFT - 22, y=TOP + i * cell, width=16, height=cell, fill=p.fill, stroke=p.ink))
    return strips


def _cells(
    owner: dict[int, int], document: list[int], devices: int, cell: float, hop: int | None
) -> list[Element | None]:
    """One path for each device and look; the hops stand in the cells, a text for each row."""
    tokens = len(document)
    paths: dict[tuple[int, str], str] = {}
    rows = []
    for i in range(tokens):
        at, digits = [], ""
        for j in range(document.index(document[i]), i + 1):
            when = (owner[i] - owner[j]) % devices
            look = "now" if hop in (None, when) else "done" if when < hop else "later"
            square = (
                f"M{number(LEFT + j * cell)} {number(TOP + i * cell)}h{number(cell)}v{number(cell)}h-{number(cell)}z"
            )
            paths[owner[i], look] = paths.get((owner[i], look), "") + square
            if look == "now" and tokens <= 16:
                at.append(number(LEFT + (j + 0.5) * cell))
                digits += str(when)
        if digits:
            y = number(TOP + (i + 0.5) * cell + 4)
            rows.append(element("text", digits, x=" ".join(at), y=y, fill=paint(owner[i]).text))
    opacity = {"now": None, "done": ".3", "later": "0"}
    shapes = [
        element(
            "path", d=d, fill=paint(rank).fill, fill_opacity=opacity[look], stroke=paint(rank).ink, stroke_width=0.7,
            data_rank=rank, data_look=look, data_cells=d.count("M"),
        )
        for (rank, look), d in paths.items()
    ]  # fmt: skip
    frame = element(
        "rect", x=LEFT, y=TOP, width=SIDE, height=SIDE, fill="none", stroke="currentColor", stroke_opacity=".5"
    )
    return [*shapes, element("g", *rows, text_anchor="middle", font_size=11) if rows else None, frame]


def _lanes(work: list[list[int]], top: float, hop: int | None) -> list[Element]:
    """A bar for each device, with a part for each hop; dotted, the time until the busiest device is done."""
    busiest = max(map(sum, work))
    scale = 350 / busiest
    drawn: list[Element] = []
    for rank, hops in enumerate(work):
        p, x, y = paint(rank), 34.0, top + LANE * rank
        drawn.append(element("rect", x=8, y=y, width=18, height=16, rx=3, fill=p.fill, stroke=p.ink))
        drawn.append(element("text", str(rank), x=17, y=y + 12, fill=p.text, text_anchor="middle", font_size=12))
        for when, pairs in enumerate(hops):
            look = None if hop in (None, when) else ".3" if when < hop else "0"
            bar = {"x": x, "y": y, "width": pairs * scale, "height": 16, "fill_opacity": look}
            if pairs:
                drawn.append(element("rect", **bar, fill=p.fill, stroke=p.ink, data_rank=rank, data_hop=when))
            x += pairs * scale
        if sum(hops) < busiest:
            dots = {"stroke_width": 3, "stroke_dasharray": "1 5", "stroke_linecap": "round", "stroke": p.ink}
            drawn.append(element("path", d=f"M{number(x + 5)} {number(y + 8)}H384", data_look="idle", **dots))
        drawn.append(label(472, y + 12, f"{sum(hops)} pairs", "end", size=12))
    return drawn


def _says(name: str, devices: int, lengths: tuple[int, ...], work: list[list[int]], hop: int | None) -> str:
    packed = f" in documents of {', '.join(map(str, lengths))}" if len(lengths) > 1 else ""
    told = f"The causal mask of {sum(lengths)} tokens{packed} over {counted(devices, 'device')}, {name}. "
    if hop is not None:
        now = "; ".join(f"rank {rank} computes {counted(hops[hop], 'pair')}" for rank, hops in enumerate(work))
        return f"{told}At hop {hop}: {now}."
    totals = "; ".join(f"rank {rank}: {sum(hops)} ({' + '.join(map(str, hops))})" for rank, hops in enumerate(work))
    slower = max(map(sum, work)) * devices / sum(map(sum, work))
    return f"{told}Pairs of each device, hop by hop: {totals}. The busiest has {slower:.2f} times the mean."
