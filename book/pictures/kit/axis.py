"""Numbers on an axis: where the ticks are, and what stands at them. The work is matplotlib's."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator

LARGE = ((1e12, "T"), (1e9, "B"), (1e6, "M"))


def readable(value: float, unit: str) -> str:
    """`value` with a prefix to its unit and three digits: readable(2.5e-05, "s") is "25 µs". Without a unit, as one
    says it: 8,192 tokens, 1.5M of them, 8B parameters."""
    digits = float(f"{value:.3g}")
    if unit:
        return EngFormatter(unit=unit)(digits).strip()
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:,.0f}"
    size, letter = next(((size, letter) for size, letter in LARGE if abs(digits) >= size), (1.0, ""))
    return f"{digits / size:,g}{letter}"


def ticks(end: float, unit: str, most: int, start: float = 0) -> tuple[list[float], Callable[[float], str]]:
    """At most `most` + 1 round values from `start` to `end`, and how to write them."""
    between = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=start < 0).tick_values(start, end)
    marks = [float(mark) for mark in between if start <= mark <= end]
    return marks, lambda mark: readable(mark, unit) if mark else "0"


def under(x: float, text: str, edge: float) -> float:
    """Where the middle of a mark's name goes: under the mark at `x`, but not across the picture's right edge."""
    return min(x, edge - 3.5 * len(text))


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten between `low` and `high`, at most `most`; where these are one or none, 2 and 5 times them, too."""
    for times in ((1.0,), (1.0, 2.0, 5.0)):
        marks = LogLocator(subs=times, numticks=most).tick_values(low, high)
        inside = [float(mark) for mark in marks if low <= mark <= high]
        if len(inside) > 1:
            break
    return inside
