"""`draw_moment`: a pipeline at one time. What does each device do, what does it keep, and what has come in?"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from book.pictures.kit.blocks import label, tag
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element
from lib.parallel.pipeline.clock import Times, timeline
from lib.parallel.pipeline.steps import Backward, BackwardInput, BackwardWeight, Forward, Schedule, Step

WIDTH, DOES, KEEPS, CAME = 480, 72, 140, 340
ROW, BOX = 38, 24


@dataclass
class Hands:
    """What a device does at a time, which steps it keeps something of for their backwards, and which messages it has
    and has not used: an activation as the forward that waits for it, a gradient as the backward."""

    does: Step | None = None
    keeps: list[Forward | BackwardInput] = field(default_factory=list)
    came: list[Step] = field(default_factory=list)


def hands_at(schedule: Schedule, time: float, times: Times | None = None) -> list[Hands]:
    """Of each device, right after `time`. A message is there as soon as it is made, and `times.message` later."""
    times = times or Times()
    lanes = timeline(schedule, times)
    begun = {slot.step: slot.start for lane in lanes for slot in lane}
    all_hands = [Hands() for _ in lanes]
    for device, lane in enumerate(lanes):
        mine = all_hands[device]
        for step, start, end in lane:
            if start <= time < end:
                mine.does = step
            if start <= time:
                if isinstance(step, Forward):
                    mine.keeps.append(step)
                if isinstance(step, BackwardInput) and end <= time:
                    mine.keeps.append(step)
            if end <= time and isinstance(step, Backward | BackwardInput):
                mine.keeps.remove(Forward(step.stage, step.micro))
            if end <= time and isinstance(step, BackwardWeight):
                mine.keeps.remove(BackwardInput(step.stage, step.micro))
            for other in _users(schedule, step):
                home = schedule.device_of[other.stage]
                if end + times.message * (home != device) <= time < begun[other]:
                    all_hands[home].came.append(other)
    return all_hands


def draw_moment(schedule: Schedule, time: float, times: Times | None = None) -> Picture:
    """The devices of `schedule` right after `time`, a row each. Filled: forward, and what is kept of it; framed:
    backward, and the gradient that it waits for.

    Errors: ValueError for more than 8 devices or micro-batches, for several stages on a device, or when the schedule
    cannot run.
    """
    if max(schedule.devices, schedule.micros) > 8 or schedule.chunks > 1:
        raise ValueError(
            f"{schedule.name}: a moment is drawn for at most 8 devices and 8 micro-batches, one stage on each"
        )
    title = f"{schedule.name}, after {time:g}"
    body: list[Element | None] = [label(8, 22, title, bold=True, size=15)]
    for x, text in ((DOES, "does"), (KEEPS, "keeps for the backward"), (CAME, "has come in")):
        body.append(label(x, 46, text, size=12))
    told = []
    for device, hands in enumerate(hands_at(schedule, time, times)):
        y = 56 + ROW * device
        body.append(tag(8, y + BOX / 2, device, 52))
        body += _boxes(DOES, y, [hands.does] if hands.does else [], device)
        body += _boxes(KEEPS, y, hands.keeps, device, small=True)
        body += _boxes(CAME, y, hands.came, device)
        keeps = ", ".join(_text(step) for step in hands.keeps) or "nothing"
        came = ", ".join(_text(step) for step in hands.came) or "nothing"
        does = _text(hands.does) if hands.does else "waits"
        told.append(f"Device {device} {'does ' * (hands.does is not None)}{does}, keeps {keeps}; come in: {came}.")
    height = 56 + ROW * schedule.devices + 6
    return Picture(WIDTH, height, title, " ".join([f"{title}:", *told]), [node for node in body if node is not None])


def _users(schedule: Schedule, step: Step) -> list[Step]:
    """The step of another stage that needs what `step` makes."""
    if isinstance(step, Forward) and step.stage < schedule.stages - 1:
        return [Forward(step.stage + 1, step.micro)]
    if isinstance(step, Backward | BackwardInput) and step.stage > 0:
        whole = Backward(step.stage - 1, step.micro)
        steps = schedule.steps[schedule.device_of[step.stage - 1]]
        return [whole if whole in steps else BackwardInput(step.stage - 1, step.micro)]
    return []


def _text(step: Step) -> str:
    return f"{step.letter}{step.micro}"


def _boxes(x: float, y: float, steps: list[Step], device: int, small: bool = False) -> list[Element]:
    color, drawn = paint(device), []
    wide = 20 if small else 34
    for i, step in enumerate(steps):
        filled = isinstance(step, Forward)
        left = x + i * (wide + 3)
        look = {"fill": color.fill if filled else "none", "stroke": color.ink}
        text = str(step.micro) if small else _text(step)
        drawn.append(
            element(
                "g",
                element("rect", x=left, y=y, width=wide, height=BOX, **look),
                element(
                    "text", text, x=left + wide / 2, y=y + 16.5, text_anchor="middle", font_size=12,
                    fill=color.text if filled else None,
                ),
                data_rank=device,
                data_step=str(step),
            )
        )  # fmt: skip
    return drawn
