"""`draw_activations`: what a device keeps of one layer for its backward, term by term, for each way to split it."""

from __future__ import annotations

from book.pictures.kit.axis import readable
from book.pictures.kit.blocks import label
from book.pictures.kit.language import paint
from book.pictures.kit.legend import MEANING
from book.pictures.kit.svg import Picture, element
from lib.costs.activations import LayerShape, Part, Term, activation_terms
from lib.parallel.gpt.block import Recompute

WIDTH, LEFT, RIGHT = 480, 72, 368
TALL, STEP = 22, 28  # of a bar, and from bar to bar
PARTS: dict[Part, str] = {
    "scores": "softmax, mask, weights",
    "attention": "Q, K, V, outputs",
    "MLP": "input, output of GeLU",
    "inputs": "into attention and MLP",
    "LayerNorm": "its inputs",
    "dropout": "its masks",
    "layer": "input of the layer",
}
WAYS: dict[Recompute | None, str] = {
    None: "everything kept",
    "selective": "scores computed anew (selective)",
    "full": "whole layer computed anew (full)",
}


def draw_activations(
    shape: LayerShape, devices: int, title: str = "One layer, kept for its backward", most: float | None = None
) -> Picture:
    """Bytes per device by `activation_terms`: with tensor parallelism (TP) and with sequence parallelism too (SP), each
    without recomputation, with selective and with full. Percent are of one device that keeps everything.

    `most` (bytes) is the end of the scale. Without it, it is what one device keeps, so that bars of the same layer
    are seen to shrink with the devices.

    Errors: ValueError as `activation_terms`, or if a bar is longer than `most`.
    """
    rows = {(way, sp): activation_terms(shape, devices, sp, way) for way in WAYS for sp in (False, True)}
    alone = _total(activation_terms(shape))
    most = most or alone
    longest = max(map(_total, rows.values()))
    if longest > most:
        raise ValueError(f"a bar of {readable(longest, 'B')} is longer than the scale, most={readable(most, 'B')}")
    numbers = f"s={shape.sequence}, b={shape.batch}, h={shape.hidden}, a={shape.heads}, t={devices}"
    body = [label(8, 24, title, bold=True, size=15), label(8, 44, f"{numbers}. Bytes on each device.", size=12)]
    told, y = [], 68.0
    for way, says in WAYS.items():
        body.append(label(8, y, says, size=12))
        y += 8
        for sp in (False, True):
            terms, name = rows[way, sp], "TP + SP" if sp else "TP"
            total = _total(terms)
            text = f"{readable(total, 'B')}, {total / alone:.{0 if total > alone / 100 else 1}%}"
            end = LEFT + (RIGHT - LEFT) * total / most
            body += [
                label(8, y + TALL / 2 + 4.5, name),
                *_bar(terms, y, (RIGHT - LEFT) / most),
                label(end + 6, y + TALL / 2 + 4.5, text),
            ]
            told.append(f"{says}, {name}: {text}{_in_words(terms)}")
            y += STEP
        y += 18
    y -= 6
    for i, (part, says) in enumerate(PARTS.items()):
        factor = sum(term.factor for term in rows["full" if part == "layer" else None, False] if term.part == part)
        unit = "as²b" if part == "scores" else "sbh"
        named = says if part == "layer" else f"{part}: {says}"
        body.append(label(8 + 246 * (i % 2), y + 20 * (i // 2), f"{i + 1}  {named}, {factor}{unit}", size=11.5))
    y += 20 * ((len(PARTS) - 1) // 2) + 12
    looks = ("sharded", "replicated")
    for i, look in enumerate(looks):
        body += [
            element("rect", x=8, y=y + 4 + 22 * i, width=24, height=14, **_style(look == "sharded", 24)),
            label(40, y + 15.5 + 22 * i, MEANING[look], size=12),
        ]
    height = 22 * len(looks)
    body += [
        label(8, y + height + 18, "16-bit activations, one-byte masks; no LayerNorm statistics.", size=12),
    ]
    return Picture(WIDTH, y + height + 28, title, f"{title}, on each device. {numbers}. {'. '.join(told)}.", body)


def _bar(terms: list[Term], y: float, across: float) -> list:
    """One segment per part of the layer: filled where the devices share it, outlined where each has all of it."""
    x, drawn = float(LEFT), []
    for i, part in enumerate(PARTS):
        mine = [term for term in terms if term.part == part]
        if not mine:
            continue
        length, sharded = _total(mine) * across, mine[0].sharded
        inset = min(1.25, length / 4)  # neighbors do not touch
        drawn.append(
            element(
                "rect",
                x=x + inset,
                y=y + 1,
                width=length - 2 * inset,
                height=TALL - 2,
                **_style(sharded, length),
                data_part=part,
                data_look="sharded" if sharded else "replicated",
                data_size=round(_total(mine)),
            )
        )
        if length >= 11:
            fill = paint(0).text if sharded else "currentColor"
            middle = {"x": x + length / 2, "y": y + TALL / 2 + 4, "text_anchor": "middle", "font_size": 11.5}
            drawn.append(element("text", str(i + 1), **middle, fill=fill))
        x += length
    return drawn


def _style(sharded: bool, length: float) -> dict[str, object]:
    """Two colors and two looks: filled where the devices share it, outlined where each has all of it."""
    if sharded:
        return {"fill": paint(0).fill}
    return {"fill": "none", "stroke": paint(5).ink, "stroke_width": 2 if length > 5 else 1}


def _in_words(terms: list[Term]) -> str:
    replicas = _total([term for term in terms if not term.sharded])
    scores = _total([term for term in terms if term.part == "scores"])
    said = [f"{readable(scores, 'B')} for the scores"] * bool(scores)
    said += [f"{readable(replicas, 'B')} the same on every device"] * bool(replicas)
    return f" ({', '.join(said)})" if said else ""


def _total(terms: list[Term]) -> float:
    return sum(term.size for term in terms)
