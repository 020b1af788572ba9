"""`draw_model`: a GPT on its devices: which weight lives where, and where the devices must talk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from xml.etree.ElementTree import Element

import torch
from torch import nn

from book.pictures.kit.blocks import Look, arrow, block, label, tag
from book.pictures.kit.holders import check_devices, shape_text
from book.pictures.kit.legend import legend
from book.pictures.kit.svg import Picture, element
from lib.costs.gpt import gpt_synchronizations
from lib.devices import Cluster, Group
from lib.devices.counts import counted
from lib.parallel.attention.heads import FusedHeads
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT
from lib.parallel.sharding.dense import layout_of
from lib.parallel.sharding.linear import ColumnParallelLinear, RowParallelLinear
from lib.parallel.sharding.placement import Replicate, Shard
from lib.parallel.tensor.vocabulary import VocabParallelEmbedding

WIDTH, LEFT, RIGHT = 480, 8, 472
GLYPH, WIDE, TALL = 100, 60, 30  # where a weight is drawn, and how large
TAG = 32  # how wide a rank's name plate is
SHAPE, EACH = 168, 274  # where the shapes begin: of the whole weight, of a device's piece
STEP = 42
SPOKEN = {
    "embedding": "embedding",
    "positions": "positions",
    "norm1": "LayerNorm",
    "attention.qkv": "Q, K, V",
    "attention.out": "output",
    "norm2": "LayerNorm",
    "mlp.up": "MLP, up",
    "mlp.down": "MLP, down",
    "norm": "LayerNorm",
}


@dataclass(frozen=True)
class Weight:
    """One weight of the model: its whole shape as (in, out), a device's piece, how it is cut, what follows."""

    name: str
    whole: tuple[int, ...]
    piece: tuple[int, ...]
    across: int | None  # 0: cut by rows, 1: by columns, None: replicated
    blocks: int  # Q, K and V are three blocks in one weight, and each is cut on its own
    talks: bool  # its result is a partial sum: the devices must add up


def draw_model(config: GPTConfig, devices: int) -> Picture:
    """The weights of a GPT from top to bottom, one of its equal layers in full, as a run without data builds them.

    A linear layer is drawn as the matrix of the formulas, (in, out). Arrows mark where partial sums are added up.

    Errors: ValueError when the devices do not divide the heads, or are more than 8.
    """
    check_devices(devices, 8)
    one_layer = replace(config, layers=1)
    with torch.device("meta"):
        weights, ends, layer = Cluster(devices).run(lambda group: _described(one_layer, group))[0]
    parameters = ends + config.layers * layer
    forward = sum(
        meeting.calls
        for meeting in gpt_synchronizations(config, batch=1, sequence=1)
        if meeting.direction == "forward" and not meeting.where.startswith("loss")
    )
    title = f"{counted(config.layers, 'layer')} of {config.hidden:,} on {counted(devices, 'device')}"
    body: list[Element | None] = [
        label(LEFT, 24, title, bold=True, size=15),
        label(LEFT, 54.5, "rank"),
        *(tag(LEFT + 40 + rank * (TAG + 2), 50, rank, TAG) for rank in range(devices)),
        label(SHAPE, 82, "weight"),
        label(EACH, 82, "of each device"),
        label(RIGHT, 82, "then", "end"),
    ]
    y, told = 94.0, []
    for weight in weights:
        if weight.name == "norm1":
            top, y = y, y + 30
            body.append(label(LEFT + 10, y - 10, counted(config.layers, "time"), bold=True))
            told.append(f"Then, {counted(config.layers, 'time')}")
        body += _row(y, weight, devices)
        told.append(_says(weight))
        y += STEP
        if weight.name == "mlp.down":
            body.append(_frame(top + 6, y))
            told.append("After the layers")
            y += 14
    body.append(label(LEFT + 10, y + 19, "head"))
    body.append(label(GLYPH, y + 19, "the embedding once more, as columns"))
    if devices > 1:
        body.append(label(GLYPH, y + 36, "loss: three all-reduces of a number per token"))
    y += 54
    total = f"{parameters:,} parameters on rank 0, of {config.parameters:,}"
    body.append(label(LEFT, y + 10, total, bold=True))
    if devices > 1:
        body.append(label(LEFT, y + 30, f"{forward} all-reduces of the whole activation in a forward pass"))
        y += 20
    y += 24
    looks = ["sharded", "replicated"] if devices > 1 else ["replicated"]
    explained, height = legend(LEFT, y, looks)
    desc = f"{title}. " + ". ".join(told) + f". {total}."
    if devices > 1:
        desc += f" A forward pass has {forward} all-reduces of the whole activation, and 3 small ones for the loss."
    nodes = [node for node in (*body, *explained) if node is not None]
    return Picture(WIDTH, y + height + 8, f"A GPT on {counted(devices, 'device')}", desc, nodes)


def _described(config: GPTConfig, group: Group) -> tuple[list[Weight], int, int]:
    """The weights of a GPT of one layer, and this device's parameters outside and inside of the layer."""
    model = GPT(config, group)
    weights = []
    for name, module in model.named_modules():
        short = name.removeprefix("blocks.0.")
        if short in SPOKEN:
            weights.append(_weight(short, module, layout_of(model, f"{name}.weight"), group.size, config))
    layer = sum(p.numel() for p in model.blocks.parameters())
    return weights, sum(p.numel() for p in model.parameters()) - layer, layer


def _weight(name: str, module: nn.Module, layout: object, devices: int, config: GPTConfig) -> Weight:
    piece = tuple(module.weight.shape)
    whole = next(shape for full, shape in config.shapes().items() if full.endswith(f"{name}.weight"))
    linear = isinstance(module, ColumnParallelLinear | RowParallelLinear)
    if linear:  # stored as (out, in)
        piece, whole = piece[::-1], whole[::-1]
    along = 1 if isinstance(layout, Shard) and layout.dim == 1 else 0
    across = None if isinstance(layout, Replicate) or devices == 1 else (1 - along if linear else along)
    talks = devices > 1 and isinstance(module, RowParallelLinear | VocabParallelEmbedding)
    return Weight(name, whole, piece, across, 3 if isinstance(layout, FusedHeads) else 1, talks)


def _row(y: float, weight: Weight, devices: int) -> list[Element | None]:
    drawn: list[Element | None] = [label(LEFT + 10, y + 19, SPOKEN[weight.name])]
    drawn += [block(x, top, 1, 1, size, look, rank) for rank, look, x, top, size in _pieces(y, weight, devices)]
    drawn += [label(SHAPE, y + 19, _short(weight.whole)), label(EACH, y + 19, _short(weight.piece))]
    if weight.talks:
        drawn += [arrow((RIGHT - 92, y + 15), (RIGHT - 68, y + 15)), label(RIGHT, y + 19, "all-reduce", "end")]
    return drawn


def _pieces(y: float, weight: Weight, devices: int) -> Iterator[tuple[int, Look, float, float, tuple[float, float]]]:
    """(rank, look, x, y, size): shards where they lie in the whole, copies as small outlines side by side."""
    flat = len(weight.whole) == 1
    for rank in range(devices):
        wide = WIDE / devices
        if weight.across is None:
            tall = 10 if flat else TALL
            yield rank, "replicated", GLYPH + rank * wide + 1, y + (TALL - tall) / 2, (wide - 2, tall)
        elif weight.across == 0:
            yield rank, "sharded", GLYPH, y + rank * TALL / devices, (WIDE, TALL / devices)
        else:
            for number in range(weight.blocks):
                left = GLYPH + (number * devices + rank) * wide / weight.blocks
                yield rank, "sharded", left, y, (wide / weight.blocks, TALL)


def _short(shape: tuple[int, ...]) -> str:
    return " × ".join(f"{n:,}" for n in shape)


def _says(weight: Weight) -> str:
    how = {None: "whole on every device", 0: "cut by rows", 1: "cut by columns"}[weight.across]
    if weight.blocks > 1 and weight.across is not None:
        how += f", each of its {weight.blocks} blocks"
    each = "" if weight.across is None else f", {shape_text(weight.piece)} on each"
    return f"{SPOKEN[weight.name]} {shape_text(weight.whole)} is {how}{each}{', then an all-reduce' * weight.talks}"


def _frame(top: float, bottom: float) -> Element:
    return element(
        "rect", x=LEFT, y=top, width=RIGHT - LEFT + 4, height=bottom - top, rx=6, fill="none",
        stroke="currentColor", stroke_opacity=".5",
    )  # fmt: skip
