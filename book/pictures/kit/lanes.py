"""A layer as lanes: a column per device, a row per stage, and a bar across all lanes where the devices talk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from xml.etree.ElementTree import Element

from torch import nn

from book.pictures.kit.axis import readable
from book.pictures.kit.blocks import Look, arrow, block, ghost, hatches, label, tag
from book.pictures.kit.holders import check_devices, shape_text
from book.pictures.kit.legend import legend
from book.pictures.kit.svg import Picture, element
from lib.costs.measure import Measured, Phase, measure
from lib.devices import Group
from lib.devices.counts import counted
from lib.parallel.sharding.placement import Replicate, Shard

WIDTH, LEFT, RIGHT = 480, 8, 472
LANES, END = 160, 456  # where the lanes begin and end; right of them is room for a residual
STEP = 18  # from row to row, for the arrows
MOST_DEVICES = 8


def seen(
    make: Callable[[Group], nn.Module], sequence: int, hidden: int, devices: int, sequence_parallel: bool = False
) -> Measured:
    """What device 0 sees and does when `make(group)` is run without data on one sequence in bfloat16.

    With `sequence_parallel`, each device has its own tokens. Shapes are as they are drawn: without the batch, and of
    weights (in, out). Errors: ValueError for more than 8 devices.
    """
    check_devices(devices, MOST_DEVICES)
    cut = Shard(1) if sequence_parallel else Replicate()
    found = measure(make, (1, sequence, hidden), devices=devices, cut=cut)
    inputs, outputs = ({name: shape[1:] for name, shape in some.items()} for some in (found.inputs, found.outputs))
    return replace(found, inputs=inputs, outputs=outputs, weights={n: s[::-1] for n, s in found.weights.items()})


def sentence(phase: Phase) -> str:
    """What is sent, in words: "2 all-reduces, 9.44 MB"."""
    if not phase.bytes_sent:
        return "nothing"
    verbs = sorted(phase.sent.items())
    calls = ", ".join(counted(c.calls, verb.replace("_", "-")) for verb, c in verbs if c.bytes_sent)
    return f"{calls}: {readable(phase.bytes_sent, 'B')}"


@dataclass(frozen=True)
class Stage:
    """What every device has at one point. `shape` is that of one device; `cut` is the dimension (0 or 1) along which
    the whole is cut as it is drawn, None for copies and partial sums. `wide` is the share of the lane that the whole
    takes, `grid` the rows and columns that a device's part is drawn with."""

    name: str
    shape: Sequence[int]
    look: Look
    cut: int | None = None
    wide: float = 0.6
    tall: float = 26
    grid: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Gate:
    """A place where devices talk, in the forward, the backward, or both. "" is nothing."""

    name: str
    forward: str
    backward: str


def lanes(
    title: str,
    desc: str,
    rows: Sequence[Stage | Gate],
    devices: int,
    notes: Sequence[str] = (),
    skips: Sequence[tuple[int, int]] = (),
) -> Picture:
    """The picture of `rows`, from top to bottom. `skips` are pairs of rows that a residual joins.

    Errors: ValueError for more than 8 devices.
    """
    pitch = (END - LANES) / check_devices(devices, MOST_DEVICES)
    narrow = pitch < 60
    body: list[Element | None] = [hatches(range(devices)), label(LEFT, 24, title, bold=True, size=15)]
    for rank in range(devices):
        wide = 30 if narrow else 56
        body.append(tag(LANES + (rank + 0.5) * pitch - wide / 2, 50, rank, wide))
    body.append(label(LEFT, 54, "shape on a device"))
    y, middles = 62.0 + STEP, []
    for i, row in enumerate(rows):
        if i:
            body += [arrow((x, y - STEP + 2), (x, y - 2)) for x in (LANES + (r + 0.5) * pitch for r in range(devices))]
        if isinstance(row, Gate):
            body += _bar(y, row)
            tall = 46.0
        else:
            body += _boxes(y, row, devices, pitch)
            tall = max(row.tall, 26)
        middles.append(y + tall / 2)
        y += tall + STEP
    for start, end in skips:  # where one residual ends and the next begins, the lines stay apart
        above, below = middles[start] + 6, middles[end] - 6
        body.append(arrow((END - 6, above), (RIGHT, above), (RIGHT, below), (END - 6, below)))
    y += 4
    body += [label(LEFT, y + 19 * i, note) for i, note in enumerate(notes)]
    y += 19 * len(notes)
    stages = [row for row in rows if isinstance(row, Stage)]
    looks = [look for look in ("sharded", "replicated", "partial") if any(row.look == look for row in stages)]
    explained, height = legend(LEFT, y, looks)
    nodes = [node for node in (*body, *explained) if node is not None]
    return Picture(WIDTH, y + height + 8, title, desc, nodes)


def gates(devices: int, sequence_parallel: bool) -> tuple[Gate, Gate]:
    """How a parallel region is entered and left: f and g, with sequence parallelism f\u0304 and g\u0304."""
    if sequence_parallel:
        # The second all-gather brings the whole x once more, for the gradient of the weight.
        enter = Gate("f\u0304", "all-gather", "reduce-scatter, all-gather")
        leave = Gate("g\u0304", "reduce-scatter", "all-gather")
    else:
        enter, leave = Gate("f", "", "all-reduce"), Gate("g", "all-reduce", "")
    return (enter, leave) if devices > 1 else (Gate(enter.name, "", ""), Gate(leave.name, "", ""))


def told(rows: Sequence[Stage | Gate]) -> str:
    """The rows in words, for a description."""
    meaning = {"sharded": "a shard", "replicated": "a copy", "partial": "a partial sum"}
    return ". ".join(
        f"{row.name}: forward {row.forward or 'nothing'}, backward {row.backward or 'nothing'}"
        if isinstance(row, Gate)
        else f"{row.name}: {shape_text(row.shape)}, {meaning[row.look]} on every device"
        for row in rows
    )


def _boxes(y: float, row: Stage, devices: int, pitch: float) -> list[Element | None]:
    """One stage: its name and shape, and what every device has, inside the outline of the whole."""
    middle = y + max(row.tall, 26) / 2
    drawn: list[Element | None] = [
        label(LEFT, middle - 4, row.name, bold=True),
        label(LEFT, middle + 13, shape_text(row.shape)),
    ]
    whole, top = (pitch - 12) * row.wide, middle - row.tall / 2
    for rank in range(devices):
        left = LANES + (rank + 0.5) * pitch - whole / 2
        if row.cut is not None and devices > 1:
            drawn.append(ghost(left, top, whole, row.tall))
        box = [left, top, whole, row.tall]
        if row.cut is not None:
            axis = 1 - row.cut  # dim 0 is drawn from top to bottom, dim 1 from left to right
            share = box[axis + 2] / devices
            box[axis] += rank * share
            box[axis + 2] = share
        size = box[2] / row.grid[1], box[3] / row.grid[0]
        drawn.append(block(box[0], box[1], *row.grid, size, row.look, rank))
    return drawn


def _bar(y: float, gate: Gate) -> list[Element]:
    """A bar across all lanes; dashed where nothing is sent in the forward."""
    frame = {"x": LEFT, "y": y, "width": END - LEFT, "height": 46, "rx": 6}
    return [
        element(
            "rect",
            **frame,
            fill="currentColor" if gate.forward else "none",
            fill_opacity=".12" if gate.forward else None,
            stroke="currentColor",
            stroke_dasharray=None if gate.forward else "5 4",
            data_talk=gate.name,
        ),
        label(LEFT + 12, y + 28, gate.name, bold=True, size=15),
        label(LANES, y + 19, f"forward ↓ {gate.forward or 'nothing'}"),
        label(LANES, y + 37, f"backward ↑ {gate.backward or 'nothing'}"),
    ]
