"""`draw_memory`: what one device holds over time, kind by kind."""

from __future__ import annotations

from book.pictures.kit.axis import readable, ticks, under
from book.pictures.kit.blocks import label, tag
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element, number
from lib.devices.memory import USES
from lib.devices.trace import Trace

WIDTH, LEFT, RIGHT = 480, 104, 472
TALL, LOW, GAP = 96, 40, 12  # heights: of the sum, of each kind, between


def draw_memory(trace: Trace, rank: int = 0, title: str = "Memory over time", most: float | None = None) -> Picture:
    """The bytes that device `rank` holds: in all, then parameters, gradients, activations, optimizer state and buffers.

    Kinds that the run never had are left out. `most` (bytes) is the top of the scale: give two pictures the same one to
    compare them.

    Errors: ValueError if the device held nothing, or `most` is below its peak.
    """
    peak = trace.peak(rank)
    if not peak:
        raise ValueError(f"nothing to draw: rank {rank} held no memory in this run")
    if most is not None and most < peak:
        raise ValueError(f"most={most} is below the peak of rank {rank}, {peak} bytes")
    kinds = [kind for kind in USES if trace.peak(rank, kind)]
    color, across = paint(rank), (RIGHT - LEFT) / trace.seconds
    body = [
        label(8, 24, title, bold=True, size=15),
        tag(WIDTH - 60, 19, rank, 52),
    ]
    y = 44.0
    for kind in (None, *kinds):
        height = TALL if kind is None else LOW
        up = TALL / (most or peak) if kind is None else LOW / max(trace.peak(rank, k) for k in kinds)
        bottom = y + height
        curve = trace.held(rank, kind)
        steps = "".join(
            f"V{number(bottom - size * up)}H{number(LEFT + time * across)}"
            for size, time in _spans(curve, trace.seconds)
        )
        body += [
            element(
                "path", d=f"M{LEFT} {number(bottom)}{steps}V{number(bottom)}z", fill=color.fill, data_kind=kind or "all"
            ),
            element("path", d=f"M{LEFT} {number(bottom)}H{RIGHT}", stroke="currentColor", stroke_opacity=".5"),
            label(8, bottom - height / 2, kind or "in all", bold=kind is None),
            label(8, bottom - height / 2 + 15, readable(trace.peak(rank, kind), "B"), size=12),
        ]
        y = bottom + GAP
    marks, name = ticks(trace.seconds, "s", 4)
    body += [
        label(under(LEFT + mark * across, name(mark), WIDTH), y + 4, name(mark), "middle", size=12) for mark in marks
    ]
    listed = ", ".join(f"{kind} {readable(trace.peak(rank, kind), 'B')}" for kind in kinds)
    desc = f"{title} of rank {rank}: at most {readable(peak, 'B')} in all. The most of each kind: {listed}."
    return Picture(WIDTH, y + 12, title, desc, body)


def _spans(curve: list[tuple[float, int]], end: float) -> list[tuple[int, float]]:
    """(bytes, until when), one after the other."""
    times = [time for time, _ in curve[1:]] + [end]
    return [(size, time) for (_, size), time in zip(curve, times, strict=True)]
