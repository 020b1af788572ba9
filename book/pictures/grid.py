"""`draw_grid`: the devices of a grid in their nodes, and what one of them holds, and with whom it talks."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from xml.etree.ElementTree import Element

from book.pictures.kit.blocks import label
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element
from lib.devices.counts import counted
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.grid.config import AXES, ParallelConfig
from lib.parallel.grid.ranks import RankGrid
from lib.parallel.pipeline.stages import cut_layers

WIDTH, CELL, GAP, TALL = 480, 51, 4, 34
HUES = {"tp": 0, "dp": 1, "cp": 2, "pp": 5}
WHAT = {"tp": "share each matrix", "dp": "have other texts", "cp": "have other tokens", "pp": "have other layers"}
# A rank is chosen by pointing at it or touching it, beside the slider of the widget that the picture stands in.
CHOOSE = (
    "var c=event.target.closest('[data-to]'),w=c&&c.closest('.omd-explore'),"
    "i=w&&w.querySelector('input[data-axis=rank]');"
    "if(i&&i.value!=c.dataset.to){i.value=c.dataset.to;i.dispatchEvent(new Event('input',{bubbles:true}))}"
)


def draw_grid(
    config: ParallelConfig, model: GPTConfig, rank: int, per_node: int = 4, order: Sequence[str] = AXES
) -> Picture:
    """All devices, node by node. Those in one group with `rank` have the color of the axis, and its name. Below: the
    groups with their links, and the part of `model` that `rank` holds.

    Errors: ValueError for more than 64 devices, nodes of more than 8, or a rank that there is not.
    """
    if config.devices > 64 or per_node > 8:
        raise ValueError(f"{config.devices} devices in nodes of {per_node} cannot be drawn: at most 64, in nodes of 8")
    grid = RankGrid.of(config, order)
    axes = [axis for axis in order if getattr(config, axis) > 1]
    partners = {other: axis for axis in axes for other in grid.group_of(rank, axis) if other != rank}
    body, bottom = _nodes(config, per_node, rank, partners)
    at = grid.coordinates(rank)
    place = ", ".join(f"{axis} {at[axis]}" for axis in axes)
    title = f"Rank {rank} of {config.devices}: {place or 'alone'}"
    body.append(label(8, 22, title, bold=True, size=15))
    told = []
    for axis in reversed(axes):
        group = grid.group_of(rank, axis)
        nodes = {one // per_node for one in group}
        link = "inside a node" if len(nodes) == 1 else f"across {len(nodes)} nodes"
        body.append(element("rect", x=8, y=bottom + 2, width=14, height=14, fill=paint(HUES[axis]).fill))
        body.append(label(30, bottom + 14, f"{axis}: {_short(group)}", bold=True))
        body.append(label(196, bottom + 14, f"{WHAT[axis]}, {link}"))
        told.append(f"{axis} group {_short(group)}, {link}")
        bottom += 23
    held = _held(config, model, at)
    for line in held:
        body.append(label(8, bottom + 18, line))
        bottom += 20
    nodes = f"Nodes have {counted(per_node, 'device')} each."
    desc = f"{title}. {'; '.join(told)}. {' '.join(f'{line}.' for line in held)} {nodes}"
    return Picture(WIDTH, bottom + 12, title, desc, body)


def _nodes(config: ParallelConfig, per_node: int, rank: int, partners: dict[int, str]) -> tuple[list[Element], float]:
    """Each node a frame with its devices; two nodes beside each other where they fit."""
    columns = min(per_node, 4)
    wide, tall = columns * (CELL + GAP) + GAP, ceil(per_node / columns) * (TALL + GAP) + 24
    cells, frames = [], []
    for node in range(ceil(config.devices / per_node)):
        x, y = 8 + node % 2 * (wide + 12), 34 + node // 2 * (tall + 10)
        frames.append(
            element(
                "rect", x=x, y=y, width=wide, height=tall, rx=6, fill="none", stroke="currentColor", stroke_opacity=".4"
            )
        )
        frames.append(label(x + 8, y + 15, f"node {node}", size=12))
        for i in range(min(per_node, config.devices - node * per_node)):
            left, top = x + GAP + i % columns * (CELL + GAP), y + 20 + i // columns * (TALL + GAP)
            cells.append(_cell(left, top, node * per_node + i, rank, partners))
    rows = (ceil(config.devices / per_node) + 1) // 2
    choose = {"onpointermove": CHOOSE, "onclick": CHOOSE}
    return [*frames, element("g", *cells, **choose)], 34 + rows * (tall + 10) + 4


def _cell(x: float, y: float, mine: int, chosen: int, partners: dict[int, str]) -> Element:
    axis = partners.get(mine)
    look = {"fill": "transparent", "stroke": "currentColor", "stroke_opacity": ".4"}
    ink, text = "currentColor", str(mine)
    if mine == chosen:
        look = {"fill": "transparent", "stroke": "currentColor", "stroke_width": 3}
    elif axis:
        look, ink, text = {"fill": paint(HUES[axis]).fill}, paint(HUES[axis]).text, f"{mine} {axis}"
    middle = {"text_anchor": "middle", "font_weight": "bold" if mine == chosen else None}
    return element(
        "g",
        element("rect", x=x, y=y, width=CELL, height=TALL, rx=4, **look),
        element("text", text, x=x + CELL / 2, y=y + TALL / 2 + 4.5, fill=ink, **middle),
        data_to=mine,
        style="cursor:pointer",
    )


def _held(config: ParallelConfig, model: GPTConfig, at: dict[str, int]) -> list[str]:
    """What the device at this place holds of the model and of a text, in words."""
    stages = cut_layers(model.layers, config.stages)
    layers = [stages[at["pp"] + config.pp * chunk] for chunk in range(config.chunks)]
    each = model.heads // config.tp
    heads = range(at["tp"] * each, at["tp"] * each + each)
    ends = [*["embedding"] * (at["pp"] == 0), *["head"] * (at["pp"] == config.pp - 1)]
    held = [
        f"Layers {' and '.join(_span(part) for part in layers)} of {model.layers}{''.join(f', {one}' for one in ends)}",
        f"Heads {_span(heads)} of {model.heads}, and 1/{config.tp} of each MLP",
    ]
    if config.cp > 1:
        last = 2 * config.cp - 1
        held.append(f"Stretches {at['cp']} and {last - at['cp']} of each text, cut into {last + 1} (zigzag)")
    return held


def _span(numbers: range) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _short(ranks: Sequence[int]) -> str:
    """All ranks, or of a long group its beginning and end."""
    return ", ".join(map(str, ranks)) if len(ranks) <= 4 else f"{ranks[0]}, {ranks[1]}, ... {ranks[-1]}"
