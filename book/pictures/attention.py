"""`draw_attention`: how much each word of a sentence takes from each word; `draw_weighted_average`: of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from torch import Tensor

from book.pictures.kit.blocks import label
from book.pictures.kit.heat import above_diagonal, heatmap
from book.pictures.kit.holders import shape_text
from book.pictures.kit.svg import Picture, element, number

WIDTH, LEFT, RIGHT = 480, 8, 472
LETTER = 7.6  # width of a letter, about
MOST_WORDS, MOST_VALUES = 12, 5
DIGITS_NEED = 34  # width of a cell with two decimals


def draw_attention(words: Sequence[str], weights: Tensor, query: int | None = None) -> Picture:
    """The attention weights (T, T) of T words: a row per query, a column per key, and every row adds up to 1.

    With `query`, the number of a word, arcs show what this word takes, thicker for more. When no word looks ahead, the
    keys after each query are crossed out: a causal mask.

    Errors: ValueError for more than 12 words, weights of another shape, or rows that are not an average's weights.
    """
    table = _checked(words, weights)
    if query is not None and not 0 <= query < len(words):
        raise ValueError(f"query={query} is no word: the {len(words)} words have the numbers 0 to {len(words) - 1}")
    count = len(words)
    later = above_diagonal(count, count)
    causal = count > 1 and not any(table[q][k] for q in range(count) for k in range(count) if later[q][k])
    body: list[Element] = [label(LEFT, 24, "What each word takes from each", bold=True, size=15)]
    y = 40.0
    if query is not None:
        arcs, y = _arcs(y, words, table[query], query)
        body += arcs
    left = LEFT + max(60.0, LETTER * max(map(len, words))) + 8
    wide = min(64.0, (RIGHT - left) / count)
    slanted = max(map(len, words)) * LETTER > wide
    if slanted:  # the last word leans out to the right
        wide = min(wide, (RIGHT - left - LETTER * len(words[-1]) / 2 - 8) / (count - 0.5))
    digits = wide >= DIGITS_NEED
    tall = 28 if digits else min(28.0, wide)
    top = y + (26 + 0.87 * LETTER * max(map(len, words)) if slanted else 40)
    body += [label(LEFT, top - 8, "query"), label(LEFT, y + 14, "key: what it takes from")]
    for i, word in enumerate(words):
        middle = left + (i + 0.5) * wide
        named = label(middle, top - 8, word, None if slanted else "middle", bold=i == query)
        if slanted:
            named.set("transform", f"rotate(-60 {number(middle)} {number(top - 8)})")
        body += [named, label(left - 8, top + (i + 0.5) * tall + 4.5, word, "end", bold=i == query)]
    body.append(heatmap(left, top, table, (wide, tall), digits=digits, masked=later if causal else None))
    if query is not None:
        frame = {"x": left, "y": top + query * tall, "width": count * wide, "height": tall}
        body.append(element("rect", **frame, fill="none", stroke="currentColor", stroke_width=2.5))
    bottom = top + count * tall + 22
    notes = ["Every row adds up to 1."] + (["Crossed out: words that come later (causal mask)."] if causal else [])
    body += [label(LEFT, bottom + 19 * i, note) for i, note in enumerate(notes)]
    told = range(count) if query is None else [query]
    says = "; ".join(f'"{words[q]}" takes ' + _taken(words, table[q], later[q] if causal else None) for q in told)
    mask = " No word takes anything from a later word." if causal else ""
    return Picture(
        WIDTH, bottom + 19 * len(notes) - 6, "Attention weights", f"Attention of {count} words: {says}.{mask}", body
    )


def draw_weighted_average(values: Sequence[float], weights: Sequence[float]) -> Picture:
    """The weighted average of `values` as areas: each value is a bar as wide as its weight, and as high as the average
    is the one bar of the same area.

    Errors: ValueError for lists of different lengths, more than 5 values, negative values, or weights that are not
    positive or do not add up to 1.
    """
    values, weights = [float(v) for v in values], [float(w) for w in weights]
    if len(values) != len(weights) or not 1 <= len(values) <= MOST_VALUES:
        raise ValueError(f"{len(values)} values and {len(weights)} weights: pass 1 to {MOST_VALUES} of each")
    if min(values) < 0 or not math.isfinite(sum(values)) or min(weights) <= 0 or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"values {values} must not be negative; weights {weights} must be positive and add up to 1")
    average = math.fsum(v * w for v, w in zip(values, weights, strict=True))
    left, right, top, base = LEFT + 4.0, RIGHT - 100.0, 60.0, 240.0
    up, across = (base - top) / (max(values) or 1), right - left
    body: list[Element] = [label(LEFT, 24, "A weighted average", bold=True, size=15)]
    x = left
    narrow = any(weight * across < LETTER * len(f"{weight:g}") for weight in weights)
    for i, (value, weight) in enumerate(zip(values, weights, strict=True)):
        width, height = weight * across, value * up
        frame = {"x": x, "y": base - height, "width": width, "height": height}
        body += [
            element("rect", **frame, fill_opacity=".25", stroke="currentColor", data_value=f"{value:g}"),
            label(x + width / 2, base - height - 6, f"{value:g}", "middle", bold=True),
            label(x + width / 2, base + (33 if narrow and i % 2 else 18), f"{weight:g}", "middle"),
        ]
        x += width
    line = base - average * up
    body += [
        element(
            "path",
            d=f"M{number(left)} {number(line)}H{number(right + 6)}",
            stroke="currentColor",
            stroke_width=2.5,
            stroke_dasharray="7 4",
            data_value=f"{average:g}",
        ),
        label(right + 12, line + 5, f"{average:g}", bold=True, size=16),
        label(right + 12, line + 22, "average"),
        label(right + 12, base + 18, "weight"),
    ]
    terms = " + ".join(f"{weight:g} × {value:g}" for value, weight in zip(values, weights, strict=True))
    products = " + ".join(f"{weight * value:g}" for value, weight in zip(values, weights, strict=True))
    sums = [terms, f"= {products}", f"= {average:g}"]
    body += [label(LEFT, base + 58 + 19 * i, line, bold=i == 2) for i, line in enumerate(sums)]
    desc = (
        f"Bars as high as the values {', '.join(f'{v:g}' for v in values)} and as wide as their weights "
        f"{', '.join(f'{w:g}' for w in weights)}. A line at {average:g}, their weighted average: {terms} = {average:g}."
    )
    return Picture(WIDTH, base + 108, "A weighted average", desc, body)


def _checked(words: Sequence[str], weights: Tensor) -> list[list[float]]:
    count = len(words)
    if not 1 <= count <= MOST_WORDS:
        raise ValueError(f"{count} words do not fit this picture: pass 1 to {MOST_WORDS}")
    if tuple(weights.shape) != (count, count):
        raise ValueError(
            f"weights of shape {shape_text(weights.shape)} for {count} words: they must be [{count}, {count}], "
            "one row per query, of one head"
        )
    table = weights.detach().double().tolist()
    for word, row in zip(words, table, strict=True):
        if not min(row) >= 0 or not abs(sum(row) - 1) < 1e-3:
            raise ValueError(
                f"the row of {word!r} has a sum of {sum(row):g} and {min(row):g} as its smallest: weights are what "
                "softmax over the keys gives, 0 or more, with a sum of 1"
            )
    return table


def _arcs(y: float, words: Sequence[str], row: Sequence[float], query: int) -> tuple[list[Element], float]:
    """The sentence on a line, an arc from each word to the query that takes from it, and under each word how much."""
    pitch = (RIGHT - LEFT) / len(words)
    long = max(map(len, words)) * LETTER > pitch
    high = 26 + 16 * max(query, len(words) - 1 - query)
    base = y + high
    at = [LEFT + (i + 0.5) * pitch for i in range(len(words))]
    drawn: list[Element] = []
    for i, share in enumerate(row):
        if i == query or share < 0.005:
            continue
        peak = base - 2 * (12 + 16 * abs(i - query))  # of the curve's handle; the curve itself rises half as high
        curve = f"M{number(at[i])} {number(base)}Q{number((at[i] + at[query]) / 2)} {number(peak)} {number(at[query])} "
        drawn.append(
            element(
                "path",
                d=curve + number(base),
                fill="none",
                stroke="currentColor",
                stroke_width=round(1 + 11 * share, 1),
                stroke_opacity=".55",
                data_look="arc",
                data_value=f"{share:g}",
            )
        )
    for i, (word, share) in enumerate(zip(words, row, strict=True)):
        # Long words take turns on two lines.
        line = base + 18 + (17 if long and i % 2 else 0)
        half = (LETTER + 1) * len(word) / 2  # it may be bold
        drawn.append(label(min(max(at[i], half), WIDTH - half), line, word, "middle", bold=i == query))
        drawn.append(label(at[i], base + (54 if long else 37), f"{share:.2f}", "middle", bold=i == query))
    return drawn, base + (70 if long else 54)


def _taken(words: Sequence[str], row: Sequence[float], hidden: Sequence[bool] | None) -> str:
    shares = [
        f'{share:.2f} from "{word}"'
        for i, (word, share) in enumerate(zip(words, row, strict=True))
        if not (hidden and hidden[i])
    ]
    return ", ".join(shares)
