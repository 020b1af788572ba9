"""`draw_experts`: which tokens wait for which expert, where the expert lives, and who is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from book.pictures.kit.blocks import ghost, label, tag
from book.pictures.kit.holders import check_devices, pieces
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element
from lib.devices.counts import counted

WIDTH, LEFT, CELL, TALL, ROW = 480, 104, 20, 20, 26
MOST = 18  # rows of one expert that have room
Choices = Sequence[Sequence[int]]


def draw_experts(
    chosen: Choices, experts: int, devices: int, capacity: int | None = None, kept: Choices | None = None
) -> Picture:
    """A queue for each expert: the numbers of the tokens that chose it, colored by the device that they come from.

    chosen[t] are the experts of token t. kept[t] has -1 in the place of those that are dropped, as `keep_first` does
    (None: nothing is). The dashed line is the `capacity`; what is dropped stands behind it, crossed out.

    Errors: ValueError if an expert has more rows than can be drawn, or tokens or experts do not fit the devices.
    """
    check_devices(devices, 8)
    if experts < devices or len(chosen) < devices:
        raise ValueError(f"{experts} experts and {len(chosen)} tokens must be at least as many as {devices} devices")
    home = [rank for rank, (start, stop) in enumerate(pieces(len(chosen), devices)) for _ in range(start, stop)]
    queues: list[list[tuple[int, bool]]] = [[] for _ in range(experts)]  # of each expert: token, dropped
    for token, (before, after) in enumerate(zip(chosen, kept or chosen, strict=True)):
        for expert, left in zip(before, after, strict=True):
            queues[expert].append((token, left != expert))
    longest = max(map(len, queues))
    if longest > MOST:
        raise ValueError(f"an expert has {longest} rows, and {MOST} can be drawn: take fewer tokens")
    dropped = sum(gone for queue in queues for _, gone in queue)
    rows = sum(map(len, queues))
    room = "no limit" if capacity is None else f"capacity {capacity}"
    title = f"{counted(len(chosen), 'token')}, {counted(experts, 'expert')}, {counted(devices, 'device')}, {room}"
    body: list[Element] = [label(8, 24, title, bold=True, size=15)]
    body += _tokens(home)
    top, busiest = 92.0, 0
    for rank, (start, stop) in enumerate(pieces(experts, devices)):
        body.append(tag(8, top + (stop - start) * ROW / 2 - 3, rank, 52))
        for expert in range(start, stop):
            body.append(label(68, top + 15, f"E{expert}"))
            body += _queue(top, queues[expert], home, rank)
            top += ROW
        busiest = max(busiest, sum(not gone for queue in queues[start:stop] for _, gone in queue))
        top += 8
    if capacity is not None:
        at = LEFT + min(capacity, MOST) * CELL
        line = {"stroke": "currentColor", "stroke_width": 1.5, "stroke_dasharray": "5 4"}
        body.append(element("path", d=f"M{at} 84V{top - 6:.0f}", fill="none", **line, data_limit=capacity))
    even = rows / devices
    told = f"{rows} rows, {dropped} dropped. The busiest device has {busiest} rows; an even share is {even:g}."
    body.append(label(8, top + 14, told, size=12))
    lists = "; ".join(f"E{e} gets {len(q)}" for e, q in enumerate(queues))
    return Picture(WIDTH, top + 26, title, f"{title}. {lists}. {told}", body)


def _tokens(home: Sequence[int]) -> list[Element]:
    """The tokens of all devices in one line, in the colors of their devices."""
    wide = min(CELL, (WIDTH - 8 - LEFT) / len(home))
    cells = [_cell(LEFT + wide * token, 40, wide, token, rank, False, False) for token, rank in enumerate(home)]
    return [label(8, 55, "tokens"), *cells, label(8, 80, "each expert's rows, in the order of the tokens:", size=12)]


def _queue(y: float, queue: Sequence[tuple[int, bool]], home: Sequence[int], rank: int) -> list[Element]:
    drawn = [] if queue else [ghost(LEFT, y, CELL, TALL)]
    for place, (token, gone) in enumerate(queue):
        drawn.append(_cell(LEFT + CELL * place, y, CELL, token, home[token], gone, home[token] != rank))
    return drawn


def _cell(x: float, y: float, width: float, token: int, rank: int, gone: bool, moved: bool) -> Element:
    """One row. Dropped: only an outline, with a cross behind its number."""
    p = paint(rank)
    return element(
        "g",
        element("rect", x=x + 1, y=y, width=width - 2, height=TALL, fill="none" if gone else p.fill, stroke=p.ink),
        element("path", d=f"M{x + 2:.1f} {y + 1:.1f}l{width - 4:.1f} {TALL - 2}", stroke=p.ink) if gone else None,
        element(
            "text",
            str(token),
            x=x + width / 2,
            y=y + 14.5,
            fill="currentColor" if gone else p.text,
            text_anchor="middle",
            font_size=11,
        ),
        data_rank=rank,
        data_row="dropped" if gone else "sent" if moved else "stays",
    )
