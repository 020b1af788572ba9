"""`draw_schedule`: what each device of a pipeline does when, and under its lane what it holds meanwhile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple
from xml.etree.ElementTree import Element

from book.pictures.kit.blocks import label, tag
from book.pictures.kit.language import Paint, paint
from book.pictures.kit.svg import Picture, element, number
from lib.costs.pipeline import Bubble, bubble_of
from lib.devices.counts import counted
from lib.parallel.pipeline.clock import Slot, Times, timeline
from lib.parallel.pipeline.held import held, in_flight
from lib.parallel.pipeline.steps import BackwardWeight, Forward, Schedule

WIDTH, LEFT, RIGHT = 480, 66, 436
LANE, WORK, HELD = 54, 20, 20  # heights: a lane, its steps, what is held
MOST_LANES = 8
DIGIT = 6.6  # width of a digit of size 11


def draw_schedule(
    schedule: Schedule,
    times: Times | None = None,
    title: str | None = None,
    until: float | None = None,
    most: float | None = None,
    weight: float = 0.5,
) -> Picture:
    """The steps of `schedule` on a clock of `times`. Filled: forward; framed: backward; tinted: the weights' half.

    `until` is the time at the right edge and `most` the micro-batches at the top of the areas under the lanes: give two
    pictures the same ones to compare them. `weight` as in `in_flight`. Of more than 8 devices the first 8 are drawn.

    Errors: ValueError if `until` or `most` is too small for what is drawn, or the schedule cannot run.
    """
    times = times or Times()
    lanes, tops = timeline(schedule, times), in_flight(schedule, weight)
    total = max(lane[-1].end for lane in lanes)
    until, most = until or total, most or max(tops)
    if total > until or max(tops) > most:
        raise ValueError(f"until={until}, most={most}: {schedule.name} takes {total:g} and holds {max(tops):g}")
    scale, shown = (RIGHT - LEFT) / until, min(schedule.devices, MOST_LANES)
    found = bubble_of(lanes, times)
    body: list[Element | None] = [
        label(8, 22, title or schedule.name, bold=True, size=15),
        label(WIDTH - 8, 22, f"idle: {found.of_ideal:.0%} of the work", "end"),
        label(WIDTH - 8, 42, "holds", "end", size=12),
    ]
    for device in range(shown):
        top = 50 + LANE * device
        body.append(tag(8, top + WORK / 2, device, 52))
        body += _steps(lanes[device], schedule, device, top, scale)
        body += _area(held(lanes[device], schedule.chunks, weight), device, top + WORK, scale, most)
        body.append(label(WIDTH - 8, top + WORK + 14, f"{tops[device]:g}", "end", bold=True))
    bottom = 50 + LANE * shown
    if shown < schedule.devices:
        body.append(label(8, bottom + 12, f"{schedule.devices - shown} more devices are not drawn"))
        bottom += 20
    body += _key(bottom + 12, schedule)
    height = bottom + 24 + 20 * (schedule.chunks > 1)
    return Picture(
        WIDTH, height, title or schedule.name, _says(schedule, found, tops), [n for n in body if n is not None]
    )


def _steps(lane: Sequence[Slot], schedule: Schedule, device: int, top: float, scale: float) -> list[Element | None]:
    """One path for all boxes of a kind, in units of time and of a lane's height, from the first of them on: lanes that
    do the same at other times are then the same text, and a widget stores it once."""
    color, mine = paint(device), schedule.stages_of(device)
    boxes: dict[str, list[Box]] = defaultdict(list)
    for step, start, end in _visible(lane, 1 / scale):
        if end > start:
            kind = "F" if isinstance(step, Forward) else "W" if isinstance(step, BackwardWeight) else "B"
            boxes[kind].append(Box(start, end - start, str(step.micro), mine.index(step.stage) > 0))
    drawn: list[Element | None] = []
    for kind, look in _looks(color).items():
        if not boxes[kind]:
            continue
        first = boxes[kind][0].start
        moved = [box._replace(start=box.start - first) for box in boxes[kind]]
        units = f"scale({scale:.5g} {WORK})"
        line = {"stroke": color.ink, "stroke_width": 0.8, "vector_effect": "non-scaling-stroke"}
        path = element("path", d=_outline(moved), transform=units, **line, **look)
        ink = color.text if kind == "F" else None
        place = f"translate({number(LEFT + first * scale)} {number(top)})"
        drawn.append(
            element(
                "g", path, _digits(moved, scale, ink), _marks(moved, scale), transform=place, data_rank=device,
                data_kind=kind,
            )
        )  # fmt: skip
    return drawn


class Box(NamedTuple):
    """A step on the clock; `later`: not of the first of its device's stages."""

    start: float
    wide: float
    text: str
    later: bool


def _outline(boxes: list[Box]) -> str:
    """A box for each: a step to the right from where the last one began, across, down, and back."""
    path, at = "", 0.0
    for box in boxes:
        move = _short(box.start - at)
        at += float(move)  # what is written: rounding must not add up from box to box
        path += f"m{move} 0h{_short(box.wide)}v1h-{_short(box.wide)}z"
    return path


def _short(value: float) -> str:
    """Of units: 0.5 -> ".5", 2.0 -> "2"."""
    return f"{value:.2f}".rstrip("0").rstrip(".").removeprefix("0") or "0"


def _marks(boxes: list[Box], scale: float) -> Element | None:
    """A line under the number, from the second stage of a device on."""
    lines = [
        f"M{number(box.start * scale + 1.5)} {WORK - 2.5}h{number(max(box.wide * scale - 3, 1))}"
        for box in boxes
        if box.later
    ]
    return element("path", d="".join(lines), stroke="currentColor", stroke_width=2, data_chunk="") if lines else None


def _visible(lane: Sequence[Slot], least: float) -> Sequence[Slot]:
    """Steps of less than `least` cannot be told apart: one is drawn where several would stand in one place."""
    if not lane or max(slot.end - slot.start for slot in lane) >= least:
        return lane
    kept: list[Slot] = []
    for slot in lane:
        if not kept or slot.start >= kept[-1].start + least:
            kept.append(slot._replace(end=slot.start + least))
    return kept


def _looks(color: Paint) -> dict[str, dict[str, object]]:
    return {"F": {"fill": color.fill}, "B": {"fill": "none"}, "W": {"fill": color.ink, "fill_opacity": ".25"}}


def _digits(boxes: list[Box], scale: float, ink: str | None) -> Element | None:
    """The numbers that fit into their boxes."""
    fitting = [box for box in boxes if len(box.text) * DIGIT + 1 <= box.wide * scale]
    texts = [element("text", box.text, x=number((box.start + box.wide / 2) * scale)) for box in fitting]
    look = {"transform": "translate(0 14)", "font_size": 11, "text_anchor": "middle", "fill": ink}
    return element("g", *texts, **look) if texts else None


def _area(points: list[tuple[float, float]], device: int, top: float, scale: float, most: float) -> list[Element]:
    """What is held over time, in units of time and micro-batches, as an area that stands on its base line."""
    base, color = top + 3 + HELD, paint(device)
    levels = dict(points)  # of several at one time the last: what is let go and taken at once is no change
    path = f"M0 0V{_short(levels[0.0])}"
    for (_, before), (time, level) in pairwise(levels.items()):
        if level != before:
            path += f"H{_short(time)}V{_short(level)}"
    units = f"translate({LEFT} {number(base)})scale({scale:.5g} {-HELD / most:.5g})"
    line = element("path", d=f"M{LEFT} {number(base)}H{RIGHT}", stroke="currentColor", stroke_opacity=".4")
    area = element("path", d=path + "V0z", transform=units, fill=color.ink, fill_opacity=".45", data_held=device)
    return [line, area]


def _key(y: float, schedule: Schedule) -> list[Element]:
    drawn, x = [], 8.0
    kinds = {type(step) for steps in schedule.steps for step in steps}
    words = {"F": "forward", "B": "backward", "W": "weights' half"}
    neutral = Paint("currentColor", "", "currentColor")
    for kind, look in _looks(neutral).items():
        if kind == "W" and BackwardWeight not in kinds:
            continue
        look = look | {"fill_opacity": {"F": ".7", "B": None, "W": ".25"}[kind]}
        drawn.append(
            element("rect", x=x, y=y - 11, width=18, height=14, stroke="currentColor", stroke_width=0.8, **look)
        )
        drawn.append(label(x + 24, y, words[kind], size=12))
        x += 34 + 6.6 * len(words[kind])
    area = f"M{number(x)} {number(y + 2)}v-6h6v-6h6v6h6v6z"
    drawn.append(element("path", d=area, fill="currentColor", fill_opacity=".45"))
    drawn.append(label(x + 24, y, "micro-batches held", size=12))
    if schedule.chunks > 1:
        drawn.append(element("path", d=f"M8 {number(y + 16)}h18", stroke="currentColor", stroke_width=2))
        drawn.append(label(32, y + 20, "the later of a device's stages", size=12))
    return drawn


def _says(schedule: Schedule, found: Bubble, tops: list[float]) -> str:
    holds = ", ".join(f"{top:g}" for top in tops[:MOST_LANES])
    return (
        f"{schedule.name}, {counted(schedule.micros, 'micro-batch')} on {counted(schedule.devices, 'device')} in "
        f"{counted(schedule.stages, 'stage')}: "
        f"the slowest device takes {found.total:g} and works {found.ideal:g}. Idle: {found.of_ideal:.1%} of the work, "
        f"{found.of_total:.1%} of the time. Micro-batches held at most, by device: {holds}."
    )
