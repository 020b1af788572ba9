"""`draw_gated`: the fused weight [gate | up] of a gated MLP, cut rightly and wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

import torch

from book.pictures.kit.blocks import block, label
from book.pictures.kit.holders import check_devices
from book.pictures.kit.legend import legend
from book.pictures.kit.svg import Picture, element
from lib.devices.counts import counted
from lib.parallel.sharding.placement import Placement, Shard, ShardBlocks

WIDTH, LEFT, RIGHT, TALL = 480, 8, 472, 30
MOST = 8
WAYS = {"each block": ShardBlocks(2), "as one": Shard(0)}


def draw_gated(devices: int, cut: str = "each block", inner: int = 8) -> Picture:
    """The columns of [gate | up] (rows of the stored weight), colored and numbered by the device that holds them.

    Below stands what each device can multiply: a gate and an up of the same number, if it has both.

    Errors: ValueError for another `cut` than "each block" and "as one", no devices or more than 8, or devices that do
    not divide `inner`.
    """
    if cut not in WAYS:
        raise ValueError(f"cut={cut!r} must be one of {', '.join(map(repr, WAYS))}")
    if inner % check_devices(devices, MOST):
        raise ValueError(f"inner={inner} cannot be divided over {counted(devices, 'device')}")
    owner = _owners(WAYS[cut], devices, inner)
    wide = (RIGHT - LEFT - 20) / (2 * inner)
    title = f"[gate | up] on {counted(devices, 'device')}, cut {'block by block' if cut == 'each block' else cut}"
    body: list[Element | None] = [label(LEFT, 24, title, bold=True, size=15)]
    starts = (LEFT, LEFT + inner * wide + 20)
    for name, start in zip(("gate", "up"), starts, strict=True):
        body.append(label(start + inner * wide / 2, 48, f"{name}: {inner} columns", "middle"))
    for column, rank in enumerate(owner):
        x = starts[column // inner] + column % inner * wide
        body.append(block(x, 56, 1, 1, (wide, TALL), "sharded", rank, values=[[str(rank)]]))
    body.append(label(LEFT, 56 + TALL + 22, "silu(gate i) × up i: number i, on"))
    able = 0
    for i in range(inner):
        x, y = LEFT + i * wide, 56 + TALL + 30
        if owner[i] == owner[inner + i]:
            able += 1
            body.append(block(x, y, 1, 1, (wide, TALL), "sharded", owner[i], values=[[str(owner[i])]]))
        else:
            body.append(_missing(x, y, wide))
    verdict = "every number can be made where its gate and its up are"
    if able < inner:
        verdict = f"only {able} of {inner} numbers" if able else "no number"
        verdict += " has its gate and its up on one device"
    y = 56 + 2 * TALL + 52
    body.append(label(LEFT, y, verdict[0].upper() + verdict[1:] + ".", bold=True))
    explained, height = legend(LEFT, y + 12, ["sharded"])
    desc = f"{title}. {_says(owner, devices, inner)}. So {verdict}."
    nodes = [node for node in (*body, *explained) if node is not None]
    return Picture(WIDTH, y + 20 + height, title, desc, nodes)


def _owners(layout: Placement, devices: int, inner: int) -> list[int]:
    """Which device has column i of [gate | up]: the layout is asked to cut the numbers of the columns."""
    owner = [0] * (2 * inner)
    for rank in range(devices):
        for column in layout.piece(torch.arange(2 * inner), devices, rank).tolist():
            owner[column] = rank
    return owner


def _missing(x: float, y: float, wide: float) -> Element:
    return element(
        "g",
        element(
            "rect", x=x + 1, y=y + 1, width=wide - 2, height=TALL - 2, fill="none", stroke="currentColor",
            stroke_opacity=".5", stroke_dasharray="2 4",
        ),
        element("text", "?", x=x + wide / 2, y=y + TALL / 2 + 4.5, text_anchor="middle"),
        data_look="missing",
    )  # fmt: skip


def _says(owner: Sequence[int], devices: int, inner: int) -> str:
    told = []
    for rank in range(devices):
        gates, ups = ([i for i in range(inner) if owner[start + i] == rank] for start in (0, inner))
        told.append(f"rank {rank} has {_span('gate', gates)} and {_span('up', ups)}")
    return "; ".join(told)


def _span(name: str, numbers: Sequence[int]) -> str:
    if not numbers:
        return f"no {name}"
    return f"{name} {numbers[0]}" if len(numbers) == 1 else f"{name} {numbers[0]} to {numbers[-1]}"
