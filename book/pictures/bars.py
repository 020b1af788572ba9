"""`draw_bars`: numbers beside a picture, such as the bytes that every device sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from book.pictures.kit.blocks import label, tag
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element

WIDTH, MARGIN, TAG = 480, 8, 52
ROOMY = 13  # letters of the longest number that a common scale leaves room for
# Two parts have a look of their own in the whole book: what the devices share, and what each of them has alike.
LOOKS = {"sharded": {"fill": paint(0).fill}, "replicated": {"fill": "none", "stroke": paint(5).ink, "stroke_width": 2}}
NEUTRAL = {"fill": "currentColor", "fill_opacity": ".55"}
Value = float | Mapping[str, float]


def draw_bars(
    values: Mapping[str, Value] | Sequence[float],
    title: str,
    unit: str = "",
    *,
    most: float | None = None,
    limit: tuple[float, str] | None = None,
) -> Picture:
    """Horizontal bars with their numbers: a mapping label -> value, or one value per rank (in the rank's color).

    A value may be a mapping part -> value: its parts stand in one bar, one after the other. The parts "sharded" and
    "replicated" have a fixed look. `most` is the end of the scale: give all states of a widget the same one, so that
    bars can be seen to shrink. `limit` (value, its name) is a dashed line, such as the memory of a device; a bar that
    is longer than the scale is cut off, with an open end.

    Errors: ValueError if there is nothing to draw or a value is negative or not finite.
    """
    ranked = not isinstance(values, Mapping)
    named: dict[str, Value] = {f"rank {i}": v for i, v in enumerate(values)} if ranked else dict(values)
    if not named:
        raise ValueError(f"nothing to draw for {title!r}: pass one value or more")
    for key, value in named.items():
        for number in _parts(value).values():
            if not 0 <= number < float("inf"):
                raise ValueError(f"cannot draw a bar of {number!r} for {key!r}: values must be finite and not negative")
    texts = {key: _text(value, unit) for key, value in named.items()}
    names = list(dict.fromkeys(part for value in named.values() for part in _parts(value) if part))
    left = MARGIN + (TAG if ranked else min(180.0, max(7.8 * len(k) for k in named))) + 10
    longest = max(map(len, texts.values()))
    if most is not None:  # the scale must not depend on how long the numbers of this state are
        longest = max(longest, ROOMY)
    room = WIDTH - MARGIN - left - 7.6 * longest - 8
    largest = most or max(map(_total, named.values())) or 1
    body = [label(MARGIN, 24, title, bold=True, size=15)]
    top, at = 52, None
    if limit is not None:
        at = left + room * min(limit[0] / largest, 1)
        body.append(label(at, 48, limit[1], "middle" if at < WIDTH - 80 else "end", size=12))
        top = 70
    for i, (key, value) in enumerate(named.items()):
        middle = top + 28 * i
        body.append(tag(MARGIN, middle, i, TAG) if ranked else label(MARGIN, middle + 4.5, key))
        x = left
        for part, number in _parts(value).items():
            length = round(min(room * number / largest, left + room - x), 1)
            look = {"fill": paint(i).fill, "stroke": paint(i).ink} if ranked else _look(part, names)
            bar = {"x": x, "y": middle - 8, "width": length, "height": 16}
            body.append(element("rect", **bar, **look, data_value=number, data_part=part or None))
            x += length
        if _total(value) > largest:  # torn off: a white slit near its end
            body.append(element("path", d=f"M{x - 12} {middle - 11}l5 22", stroke="currentColor", stroke_width=2))
        body.append(label(_beside(x + 8, texts[key], at), middle + 4.5, texts[key]))
    bottom = top + 28 * len(named) - 4
    if limit is not None:
        line = {"stroke": "currentColor", "stroke_width": 1.5, "stroke_dasharray": "5 4"}
        body.append(element("path", d=f"M{at:.1f} 54V{bottom - 8}", fill="none", **line, data_limit=limit[0]))
    explained, height = _legend(names, bottom + 4)
    listed = "; ".join(f"{key}: {texts[key]}{_in_words(value)}" for key, value in named.items())
    desc = f"Bars of {title}. {listed}." + (f" The line: {limit[1]}." if limit is not None else "")
    return Picture(WIDTH, bottom + height, title, desc, [*body, *explained])


def _beside(x: float, text: str, line: float | None) -> float:
    """Where a bar's number begins: at x, or behind the line of the limit if that would cross it."""
    return line + 6 if line is not None and x - 4 < line < x + 7.6 * len(text) else x


def _parts(value: Value) -> Mapping[str, float]:
    return value if isinstance(value, Mapping) else {"": value}


def _total(value: Value) -> float:
    return sum(_parts(value).values())


def _text(value: Value, unit: str) -> str:
    total = _total(value)
    return (f"{total:,}" if isinstance(total, int) else f"{total:,.4g}") + (f" {unit}" if unit else "")


def _in_words(value: Value) -> str:
    parts = [f"{part} {_text(number, '')}" for part, number in _parts(value).items() if part and number]
    return f" ({', '.join(parts)})" if parts else ""


def _look(part: str, names: Sequence[str]) -> dict[str, object]:
    if not part:
        return NEUTRAL
    return LOOKS.get(part) or {"fill": paint(names.index(part)).fill}


def _legend(names: Sequence[str], y: float) -> tuple[list[Element], float]:
    drawn: list[Element] = []
    columns = 3 if max(map(len, names), default=0) <= 17 else 2
    for i, part in enumerate(names):
        x, middle = MARGIN + WIDTH // columns * (i % columns), y + 12 + 22 * (i // columns)
        drawn.append(element("rect", x=x, y=middle - 7, width=24, height=14, **_look(part, names)))
        drawn.append(label(x + 32, middle + 4.5, part))
    return drawn, 8 + 22 * -(-len(names) // columns) if names else 0
