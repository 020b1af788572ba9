"""`draw_resharding`: which part of which file each device reads, when others wrote them. `draw_saving`: what stands on
the disk when a training is killed while it saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from book.pictures.kit.blocks import block, label, tag
from book.pictures.kit.holders import check_devices, stretch
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element, number
from lib.devices.counts import counted
from lib.devices.pieces import shard_sizes

WIDTH, LEFT, HIGH = 480, 16, 30
MOST = 8


def draw_resharding(before: int, after: int, rows: int = 24) -> Picture:
    """A tensor of `rows`, cut over `before` devices, above; the same over `after` devices, below; between them, what is
    read from where.

    Errors: ValueError for no devices, more than 8, or fewer rows than devices.
    """
    for devices in (before, after):
        if not check_devices(devices) <= min(MOST, rows):
            raise ValueError(f"{devices} devices must be from 1 to {min(MOST, rows)}, or the pieces cannot be seen")
    each = (WIDTH - 2 * LEFT) / rows
    top, bottom = 64, 176
    title = f"Written by {counted(before, 'device')}, read by {after}"
    body: list[Element | None] = [label(8, 22, title, bold=True, size=15), label(LEFT, top - 10, "files", size=12)]
    spans = {devices: _spans(shard_sizes(rows, devices)) for devices in (before, after)}
    told, bands = [], []
    for reader, (a, b) in enumerate(spans[after]):
        sources = []
        for writer, (c, d) in enumerate(spans[before]):
            first, last = max(a, c), min(b, d)
            if first < last:
                x0, x1 = LEFT + each * first, LEFT + each * last
                bands.append(_band(x0, x1, top + HIGH, bottom, writer))
                sources.append(f"{stretch('row', range(first, last))} from the file of rank {writer}")
        told.append(f"rank {reader} reads {' and '.join(sources)}")
    body += bands
    for devices, y in ((before, top), (after, bottom)):
        for rank, (a, b) in enumerate(spans[devices]):
            body.append(block(LEFT + each * a, y, 1, b - a, (each, HIGH), "sharded", rank))
    for rank, (a, b) in enumerate(spans[after]):
        width = min(56.0, each * (b - a) - 2)
        body.append(tag(LEFT + each * (a + b) / 2 - width / 2, bottom + HIGH + 16, rank, width))
    read = sum(text.count("rows ") for text in told)
    body.append(label(LEFT, bottom + HIGH + 48, f"{counted(read, 'block')} read, each row once", size=13))
    desc = f"{title}, {rows} rows: {'; '.join(told)}."
    return Picture(WIDTH, bottom + HIGH + 58, title, desc, [part for part in body if part is not None])


def _spans(sizes: Sequence[int]) -> list[tuple[int, int]]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _band(x0: float, x1: float, top: float, bottom: float, writer: int) -> Element:
    ink, left, right = paint(writer).ink, number(x0 + 1), number(x1 - 1)
    return element(
        "path",
        d=f"M{left} {number(top + 3)}H{right}V{number(bottom - 3)}H{left}z",
        fill=ink,
        fill_opacity=".18",
        stroke=ink,
        stroke_dasharray="3 3",
    )


LOOKS = {"whole": "on the disk", "half": "half written, under another name", "absent": "not there"}


def draw_saving(files: Mapping[str, Mapping[str, str]], loaded: str, title: str) -> Picture:
    """For each checkpoint a column with the state of each of its files (whole, half or absent); below, which one is
    `loaded` by a training that starts now.

    Errors: ValueError for a state that is none of the three.
    """
    wide = (WIDTH - 2 * LEFT) / len(files)
    body: list[Element] = [label(8, 22, title, bold=True, size=15)]
    told, most = [], max(map(len, files.values()))
    for column, (checkpoint, states) in enumerate(files.items()):
        x = LEFT + wide * column
        body.append(label(x, 52, checkpoint, bold=True, size=13))
        for row, (name, state) in enumerate(states.items()):
            if state not in LOOKS:
                raise ValueError(f"{name} is {state!r}, and a file is {', '.join(LOOKS)}")
            y = 62 + 34 * row
            ink = paint(row).ink
            body.append(
                element(
                    "rect", x=x, y=y, width=wide - 16 if state != "half" else (wide - 16) / 2, height=26, rx=4,
                    fill=ink if state == "whole" else "none", fill_opacity=".25", stroke=ink,
                    stroke_width=2 if state != "absent" else 1,
                    stroke_dasharray=None if state == "whole" else "5 3" if state == "half" else "1 4",
                )
            )  # fmt: skip
            body.append(label(x + 8, y + 17, name if state != "absent" else f"{name}: none", size=12))
        whole = [name for name, state in states.items() if state == "whole"]
        half = [name for name, state in states.items() if state == "half"]
        said = f"{checkpoint} has {', '.join(whole) or 'no file'}" + (
            f", and half of {', '.join(half)}" if half else ""
        )
        told.append(said)
    bottom = 62 + 34 * most + 14
    body.append(label(LEFT, bottom + 4, f"A restart loads: {loaded}", bold=True, size=13))
    desc = f"{title}. {'; '.join(told)}. A restart loads {loaded}."
    return Picture(WIDTH, bottom + 16, title, desc, body)
