"""Numbers on an axis: where the ticks are, and what stands at them. The work is matplotlib's."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator


def readable(value: float, unit: str) -> str:
    """`value` with a prefix to its unit and three digits: readable(2.5e-05, "s") is "25 µs"."""
    digits = float(f"{value:.3g}")
    return EngFormatter(unit=unit)(digits).strip() if unit else f"{digits:,g}"


def ticks(end: float, unit: str, most: int, start: float = 0) -> tuple[list[float], Callable[[float], str]]:
    """At most `most` + 1 round values from `start` to `end`, and how to write them."""
    between = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=start < 0).tick_values(start, end)
    marks = [float(mark) for mark in between if start <= mark <= end]
    return marks, lambda mark: readable(mark, unit) if mark else "0"


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten between `low` and `high`, at most `most`; where these are one or none, 2 and 5 times them, too."""
    for times in ((1.0,), (1.0, 2.0, 5.0)):
        marks = LogLocator(subs=times, numticks=most).tick_values(low, high)
        inside = [float(mark) for mark in marks if low <= mark <= high]
        if len(inside) > 1:
            break
    return inside
