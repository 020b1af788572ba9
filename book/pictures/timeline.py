"""`draw_timeline`: what every device did when; a lane per device, time from left to right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from xml.etree.ElementTree import Element

from book.pictures.kit.axis import readable, ticks, under
from book.pictures.kit.blocks import label, tag
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element, number
from lib.devices.counts import counted
from lib.devices.trace import Event, Kind, Trace

WIDTH, LEFT, RIGHT = 480, 70, 472
LANE, WORK, TALK = 46, 20, 16  # heights: a lane, its upper track (compute, waiting), its lower track (communication)
LETTER = 6.2  # width of a letter of size 11
MOST_LANES = 8


@dataclass(frozen=True)
class Bar:
    """Neighboring events of one kind that cannot be told apart at the picture's scale. `times`: seconds by name."""

    kind: Kind
    start: float
    end: float
    times: Counter[str]


def draw_timeline(trace: Trace, title: str = "Timeline", until: float | None = None) -> Picture:
    """The events of `trace`. Filled: computing; framed, in the lower track: communicating; dotted: waiting.

    `until` (seconds) is the time at the right edge: give two pictures the same one to compare them. Of more than 8
    devices the first 8 are drawn. A run that failed is drawn up to its failure.

    Errors: ValueError if nothing happened, or `until` is before the end.
    """
    end = until if until is not None else trace.seconds
    if not trace.events or trace.seconds == 0:
        raise ValueError("nothing to draw: in this run no device computed, talked or waited")
    if end < trace.seconds:
        raise ValueError(f"until={end} is before the end of the run at {trace.seconds} seconds")
    scale = (RIGHT - LEFT) / end
    shown = min(trace.size, MOST_LANES)
    bottom = 44 + LANE * shown
    marks, name = ticks(end, "s", 4)
    body: list[Element | None] = [
        label(8, 24, title, bold=True, size=15),
        label(WIDTH - 8, 24, f"{readable(trace.seconds, 's')} in all", "end"),
        element(
            "path",
            d="".join(f"M{number(LEFT + mark * scale)} 38V{number(bottom)}" for mark in marks),
            stroke="currentColor",
            stroke_opacity=".25",
        ),
    ]
    for rank in range(shown):
        top = 44 + LANE * rank
        body.append(tag(8, top + WORK / 2, rank, 52))
        bars = merged([event for event in trace.events if event.rank == rank], 1.2 / scale)
        body += [_bar(bar, rank, top, scale) for bar in bars]
    body += [
        label(under(LEFT + mark * scale, name(mark), WIDTH), bottom + 14, name(mark), "middle", size=12)
        for mark in marks
    ]
    if shown < trace.size:
        body.append(label(8, bottom + 34, f"{trace.size - shown} more devices are not drawn"))
        bottom += 20
    body += _key(bottom + 38)
    return Picture(WIDTH, bottom + 52, title, _says(trace, title), [node for node in body if node is not None])


def merged(events: list[Event], gap: float) -> list[Bar]:
    """The events as bars: those of one kind with less than `gap` seconds between them become one."""
    bars: list[Bar] = []
    last: dict[Kind, int] = {}  # kind -> index of its latest bar
    for event in sorted(events, key=lambda event: (event.start, event.end)):
        if event.end == event.start:
            continue
        i = last.get(event.kind)
        name = event.name.strip("_")  # PyTorch's own marks: copy_ is a copy that is made in place
        small = i is not None and min(event.seconds, bars[i].end - bars[i].start) < 12 * gap
        if i is not None and small and event.start - bars[i].end < gap:
            bar = bars[i]
            bar.times[name] += event.seconds
            bars[i] = replace(bar, end=max(bar.end, event.end))
        else:
            last[event.kind] = len(bars)
            bars.append(Bar(event.kind, event.start, event.end, Counter({name: event.seconds})))
    return bars


def _bar(bar: Bar, rank: int, top: float, scale: float) -> Element:
    x, width, color = LEFT + bar.start * scale, max((bar.end - bar.start) * scale, 0.8), paint(rank)
    data = {"data_rank": rank, "data_kind": bar.kind}
    if bar.kind == "waiting":
        line = f"M{number(x)} {number(top + WORK / 2)}h{number(width)}"
        dots = {"stroke_dasharray": "1 5", "stroke_linecap": "round"}
        return element("path", d=line, stroke=color.ink, stroke_width=3, **dots, **data)
    working = bar.kind == "compute"
    y, height = (top, WORK) if working else (top + WORK + 2, TALK)
    look = {"fill": color.fill} if working else {"fill": color.ink, "fill_opacity": ".15"}
    text = _name(bar, int((width - 6) / LETTER))
    return element(
        "g",
        element("rect", x=x, y=y, width=width, height=height, stroke=color.ink, stroke_width=0.8, **look),
        element(
            "text",
            text,
            x=x + width / 2,
            y=y + height / 2 + 4,
            text_anchor="middle",
            font_size=11,
            fill=color.text if working else None,
        )
        if text
        else None,
        **data,
    )


def _name(bar: Bar, letters: int) -> str | None:
    """What stands in a bar: the names that took most of its time, as many as there is room for. None if the others
    took more: who reads one name takes it for the whole bar."""
    names = [name for name, _ in bar.times.most_common()]
    while len(", ".join(names)) > letters:
        names.pop()
    return ", ".join(names) if 2 * sum(bar.times[name] for name in names) >= bar.times.total() else None


def _key(y: float) -> list[Element]:
    frame = {"height": 14, "width": 24, "stroke": "currentColor"}
    return [
        element("rect", x=8, y=y - 11, fill_opacity=".55", **frame),
        label(40, y, "computing"),
        element("rect", x=140, y=y - 11, fill_opacity=".12", **frame),
        label(172, y, "communicating"),
        element(
            "path",
            d=f"M300 {number(y - 4)}h24",
            stroke="currentColor",
            stroke_width=3,
            stroke_dasharray="1 5",
            stroke_linecap="round",
        ),
        label(332, y, "waiting"),
    ]


def _says(trace: Trace, title: str) -> str:
    shares = {
        kind: [trace.total(rank, kind) / trace.seconds for rank in range(trace.size)]
        for kind in ("compute", "communication", "waiting")
    }
    spans = [f"{min(s):.0%}" + (f" to {max(s):.0%}" if max(s) - min(s) > 0.005 else "") for s in shares.values()]
    overlap = any(sum(of_rank) > 1.005 for of_rank in zip(*shares.values(), strict=True))
    return (
        f"{title}: {counted(trace.size, 'device')}, {readable(trace.seconds, 's')} in all. Shares of time: "
        f"computing {spans[0]}, communicating {spans[1]}, waiting {spans[2]}"
        f"{', some of it at the same time' * overlap}."
    )
