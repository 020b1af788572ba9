"""What a benchmark table cannot tell: how far runs differ that are the same, or nearly so, by all that it says."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from statistics import mean, median
from typing import Any

from lib.costs.runs import Run


def _groups(runs: Iterable[Run], same: Callable[[Run], Hashable]) -> list[list[Run]]:
    found: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        if run.seconds is not None:
            found[same(run)].append(run)
    return [group for group in found.values() if len(group) > 1]


def repeated(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs of one and the same configuration that finished more than once."""
    return _groups(runs, lambda run: (run.shape, run.plan))


def twins(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ in the stage of ZeRO alone."""
    return _groups(runs, lambda run: (run.shape, replace(run.plan, zero=0, overlap=False)))


def spread(group: list[Run]) -> float:
    """How much longer the slowest takes than the fastest: 0.05 is 5 %."""
    times = [run.seconds for run in group]
    return max(times) / min(times) - 1


def regrets(runs: Iterable[Run], key: Callable[[Run], Any], tries: int = 1, least: int = 4) -> list[float]:
    """For every model and number of nodes with at least `least` finished runs: how much longer than the fastest takes
    the best of the `tries` first by `key`."""
    found = []
    for group in _groups(runs, lambda run: (run.name, run.nodes)):
        if len(group) >= least:
            times = [run.seconds for run in sorted(group, key=key)]
            found.append(min(times[:tries]) / min(times) - 1)
    return found


def middle_and_mean(shares: Iterable[float]) -> tuple[float, float]:
    """Median and mean of what is given, sizes without sign."""
    sizes = [abs(share) for share in shares]
    return median(sizes), mean(sizes)
