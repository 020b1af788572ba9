"""`draw_bars`: numbers beside a picture, such as the bytes that every device sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from book.pictures.kit.blocks import label, tag
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element

WIDTH, MARGIN, TAG = 480, 8, 52


def draw_bars(values: Mapping[str, float] | Sequence[float], title: str, unit: str = "") -> Picture:
    """Horizontal bars with their numbers: a mapping label -> value, or one value per rank (in the rank's
    color).

    Errors: ValueError if there is nothing to draw or a value is negative or not finite.
    """
    ranked = not isinstance(values, Mapping)
    named = {f"rank {i}": v for i, v in enumerate(values)} if ranked else dict(values)
    if not named:
        raise ValueError(f"nothing to draw for {title!r}: pass one value or more")
    for key, value in named.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"cannot draw a bar of {value!r} for {key!r}: values must be finite and not negative")
    texts = {
        k: (f"{v:,}" if isinstance(v, int) else f"{v:,.4g}") + (f" {unit}" if unit else "") for k, v in named.items()
    }
    left = MARGIN + (TAG if ranked else min(180.0, max(7.8 * len(k) for k in named))) + 10
    room = WIDTH - MARGIN - left - max(7.6 * len(t) for t in texts.values()) - 8
    largest = max(named.values()) or 1
    body = [label(MARGIN, 24, title, bold=True, size=15)]
    for i, (key, value) in enumerate(named.items()):
        middle = 52 + 28 * i
        length = round(room * value / largest, 1)
        p = paint(i) if ranked else None
        body += [
            tag(MARGIN, middle, i, TAG) if ranked else label(MARGIN, middle + 4.5, key),
            element(
                "rect",
                x=left,
                y=middle - 8,
                width=length,
                height=16,
                fill=p.fill if p else "currentColor",
                fill_opacity=None if p else ".55",
                stroke=p.ink if p else None,
                data_value=value,
            ),
            label(left + length + 8, middle + 4.5, texts[key]),
        ]
    listed = "; ".join(f"{key}: {texts[key]}" for key in named)
    return Picture(WIDTH, 52 + 28 * len(named) - 4, title, f"Bars of {title}. {listed}.", body)
