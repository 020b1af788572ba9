"""`draw_chart`: curves, such as the time of an algorithm over the size of a message, or a loss over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from book.pictures.kit.axis import log_ticks, readable, ticks
from book.pictures.kit.blocks import label
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element, number
from lib.devices.counts import counted

# No wider than a phone shows: the names of the lines stand at the right end.
WIDTH, LEFT, TOP, BOTTOM = 420, 64, 44, 264
MOST_SPANS = 4  # nobody keeps more of them in mind
LOOKS = ((0, None, 2.5), (5, "7 4", 2.5), (2, "2 4", 3), (3, "9 3 2 3", 2.5), (7, "4 2", 2), (1, None, 1.5))
Points = Sequence[tuple[float, float]]


def draw_chart(
    lines: Mapping[str, Points],
    title: str,
    x: str,
    y: str,
    units: tuple[str, str] = ("", ""),
    log: bool = False,
    note: str = "",
) -> Picture:
    """One curve per name through its (x, y) points, named at its right end. `x` and `y` say what the axes are.

    `units`, such as ("B", "s"), are written with prefixes. `log`: both axes are logarithmic. `note` says below the
    picture what it leaves out.

    Errors: ValueError for no lines, more than 6, a line of fewer than two points, points that are not finite, or not
    above 0 on logarithmic axes.
    """
    _check(lines, log)
    xs = sorted({px for points in lines.values() for px, _ in points})
    ys = [py for points in lines.values() for _, py in points]
    ends = {name: points[-1][1] for name, points in lines.items()}
    right = WIDTH - 14 - 7.2 * max(map(len, lines))
    low, high = (min(ys), max(ys)) if log else (min(0.0, min(ys)), max(ys))
    across = _scale(xs[0], xs[-1], LEFT, right, log)
    up = _scale(low, high if high > low else low + 1, BOTTOM, TOP, log)
    body = [label(8, 20, title, bold=True, size=15)]
    grid = ""
    for mark, text in _marks(low, high, units[1], log, 6):
        grid += f"M{LEFT} {number(up(mark))}H{number(right)}"
        body.append(label(LEFT - 6, up(mark) + 4, text, "end", size=12))
    for mark, text in _marks(xs[0], xs[-1], units[0], log, 5):
        grid += f"M{number(across(mark))} {TOP}V{BOTTOM}"
        body.append(label(across(mark), BOTTOM + 16, text, "middle", size=12))
    body.append(element("path", d=grid, stroke="currentColor", stroke_opacity=".2", fill="none"))
    places = _apart([up(value) for value in ends.values()], 15)
    for (name, points), (hue, dashes, width), place in zip(lines.items(), LOOKS, places, strict=False):
        path = "M" + "L".join(f"{number(across(px))} {number(up(py))}" for px, py in points)
        ink = paint(hue).ink
        body += [
            element(
                "path", d=path, fill="none", stroke=ink, stroke_width=width, stroke_dasharray=dashes, data_line=name
            ),
            element("text", name, x=right + 6, y=place + 4.5, fill=ink),
        ]
    body.append(label((LEFT + right) / 2, BOTTOM + 34, x, "middle"))
    body.append(label(8, 34, y, size=12))
    if note:
        body.append(label(8, BOTTOM + 56, note, size=12))
    return Picture(WIDTH, BOTTOM + (66 if note else 44), title, _says(lines, title, x, y, units, note), body)


def _check(lines: Mapping[str, Points], log: bool) -> None:
    if not 1 <= len(lines) <= len(LOOKS):
        raise ValueError(f"a chart has 1 to {len(LOOKS)} lines, not {len(lines)}")
    for name, points in lines.items():
        if len(points) < 2:
            raise ValueError(f"line {name!r} has {counted(len(points), 'point')}: two or more make a line")
        for point in points:
            if not all(map(math.isfinite, point)) or log and min(point) <= 0:
                raise ValueError(
                    f"line {name!r} has the point {point}: it cannot be drawn{' on logarithmic axes' * log}"
                )


def _scale(low: float, high: float, at_low: float, at_high: float, log: bool) -> Callable[[float], float]:
    turn = math.log if log else float
    first, length = turn(low), turn(high) - turn(low)
    return lambda value: at_low + (turn(value) - first) / length * (at_high - at_low)


def _marks(low: float, high: float, unit: str, log: bool, most: int) -> list[tuple[float, str]]:
    # Numbers below 0 have marks as well; where all are above, the axis of x need not begin at 0.
    marks = log_ticks(low, high, most) if log else ticks(high, unit, most, low)[0]
    return [(mark, readable(mark, unit) if mark else "0") for mark in marks]


def _apart(places: list[float], least: float) -> list[float]:
    """The places moved as little as needed so that none is nearer than `least` to another; their order stays."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for before, after in zip(order, order[1:], strict=False):
        moved[after] = max(moved[after], moved[before] + least)
    over = max(moved[order[-1]] - max(BOTTOM, places[order[-1]]), 0.0)
    return [place - over for place in moved]


def _says(lines: Mapping[str, Points], title: str, x: str, y: str, units: tuple[str, str], note: str) -> str:
    """The curves in words: their ends, and who is lowest from where to where, if that can be followed."""
    shared = {tuple(px for px, _ in points) for points in lines.values()}
    ends = [
        f"{name} goes from {readable(points[0][1], units[1])} to {readable(points[-1][1], units[1])}"
        for name, points in lines.items()
    ]
    told = [f"{title}. {y} over {x}.", f"{'; '.join(ends)}."]
    if len(lines) > 1 and len(shared) == 1:
        lowest = [(px, _lowest(lines, i)) for i, px in enumerate(next(iter(shared)))]
        spans = [(name, list(group)) for name, group in groupby(lowest, key=lambda pair: pair[1])]
        if len(spans) <= MOST_SPANS:
            where = [f"{_span(group[0][0], group[-1][0], units[0])}: {name}" for name, group in spans]
            told.append(f"Lowest {'; '.join(where)}.")
    return " ".join([*told, note]).strip()


def _span(first: float, last: float, unit: str) -> str:
    return f"from {readable(first, unit)} to {readable(last, unit)}" if first != last else f"at {readable(first, unit)}"


def _lowest(lines: Mapping[str, Points], i: int) -> str:
    """The lines that are lowest at the i-th point. Curves that differ by rounding alone are one curve."""
    least = min(points[i][1] for points in lines.values())
    *others, last = (name for name, points in lines.items() if math.isclose(points[i][1], least, rel_tol=1e-6))
    return f"{', '.join(others)} and {last}" if others else last
