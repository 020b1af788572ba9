"""`draw_masks`: which elements dropout keeps on every device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from book.pictures.kit.blocks import label, tag
from book.pictures.kit.holders import check_devices
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element, number
from lib.devices.counts import counted

WIDTH, LEFT, CELL = 480, 72, 16


def draw_masks(masks: Mapping[str, Sequence[Tensor]], title: str = "What dropout keeps") -> Picture:
    """One column for each name, one row for each device: its mask (rows, columns), filled where an element is kept.

    `masks` maps a name, such as "outside", to one boolean tensor per rank.

    Errors: ValueError for no masks, columns of different lengths, or masks that are too wide or not 2-D.
    """
    if not masks or len({len(column) for column in masks.values()}) != 1:
        raise ValueError("pass one mask per rank under every name")
    devices = check_devices(len(next(iter(masks.values()))))
    shapes = [mask.shape for column in masks.values() for mask in column]
    if any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"a mask is drawn with rows and columns, got {[tuple(shape) for shape in shapes]}")
    tall = CELL * max(shape[0] for shape in shapes)
    pitch = (WIDTH - LEFT) / len(masks)
    if CELL * max(shape[1] for shape in shapes) > pitch - 12:
        raise ValueError(f"masks of {max(shape[1] for shape in shapes)} columns are too wide for {len(masks)} names")
    body = [label(8, 24, title, bold=True, size=15)]
    told = []
    for i, (name, column) in enumerate(masks.items()):
        x = LEFT + pitch * i
        patterns = len({tuple(mask.flatten().tolist()) for mask in column})
        body += [label(x, 48, name, bold=True)]
        for rank, mask in enumerate(column):
            y = 60 + (tall + 14) * rank
            if not i:
                body.append(tag(8, y + tall / 2, rank, 52))
            body.append(_mask(x, y, mask, rank))
        says = "one pattern" if patterns == 1 else f"{patterns} patterns"
        body.append(label(x, 60 + (tall + 14) * devices + 6, says, size=12))
        told.append(f"{name}: {says} on {counted(devices, 'device')}")
    bottom = 60 + (tall + 14) * devices + 28
    body.append(label(8, bottom, "Filled: kept. Empty: dropped.", size=12))
    return Picture(WIDTH, bottom + 10, title, f"{title}. {'; '.join(told)}. Filled is kept, empty is dropped.", body)


def _mask(x: float, y: float, mask: Tensor, rank: int) -> object:
    """All kept cells are one path, and so are all dropped ones: a picture stays small."""
    kept, dropped = [], []
    for r, row in enumerate(mask.tolist()):
        for c, keep in enumerate(row):
            at = f"M{number(x + CELL * c)} {number(y + CELL * r)}h{CELL - 2}v{CELL - 2}h{2 - CELL}z"
            (kept if keep else dropped).append(at)
    color = paint(rank)
    return element(
        "g",
        element("path", d="".join(kept), fill=color.fill, data_kept=len(kept)) if kept else None,
        element("path", d="".join(dropped), fill="none", stroke=color.ink, stroke_opacity=".6") if dropped else None,
        data_rank=rank,
    )
