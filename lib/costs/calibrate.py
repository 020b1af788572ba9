"""Finding the shares of a `Machine` that no data sheet tells, from measured runs.

The error of a run is the logarithm of predicted over measured: twice too long counts as much as twice too short. Looked
for are the constants with the least mean of what each table says, so that the table with the most rows does not decide
alone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from lib.costs.machine import Machine
from lib.costs.runs import Run
from lib.costs.time import step_seconds

Constants = dict[str, float]


def predicted(run: Run, machine: Machine) -> float:
    """Seconds of the step."""
    return sum(step_seconds(run.shape, run.plan, machine).values())


def error(run: Run, machine: Machine) -> float:
    """Predicted over measured, less one: 0.05 is 5 % too long."""
    return predicted(run, machine) / run.seconds - 1


def with_constants(machine: Machine, constants: Constants) -> Machine:
    """The machine with other values; those of a link are named "inside", "between" (bandwidths) and "hop" (latency)."""
    hardware = machine.hardware
    inside, between = hardware.inside, hardware.between
    inside = replace(inside, bandwidth=constants.get("inside", inside.bandwidth))
    if between is not None:
        between = replace(
            between,
            latency=constants.get("hop", between.latency),
            bandwidth=constants.get("between", between.bandwidth),
        )
    rest = {name: value for name, value in constants.items() if name not in ("inside", "between", "hop")}
    return replace(machine, hardware=replace(hardware, inside=inside, between=between), **rest)


def _mean_of_tables(runs: Iterable[Run], size: Callable[[Run], float]) -> float:
    tables: dict[str, list[float]] = {}
    for run in runs:
        tables.setdefault(run.table, []).append(size(run))
    return sum(sum(sizes) / len(sizes) for sizes in tables.values()) / len(tables)


def mean_square(runs: Iterable[Run], machine: Machine) -> float:
    """Large errors count more: for tables in which every row can be trusted."""
    return _mean_of_tables(runs, lambda run: math.log(predicted(run, machine) / run.seconds) ** 2)


def mean_size(runs: Iterable[Run], machine: Machine) -> float:
    """Large errors count as they are: for a sweep in which a few runs were stuck, and must not decide."""
    return _mean_of_tables(runs, lambda run: abs(math.log(predicted(run, machine) / run.seconds)))


def calibrate(
    runs: Sequence[Run],
    machine: Machine,
    names: Sequence[str],
    loss: Callable[[Sequence[Run], Machine], float] = mean_square,
    steps: Sequence[float] = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005),
) -> Machine:
    """The machine whose constants `names` fit `runs` best.

    One constant after the other goes a step up or down, by such a share of itself, as long as the loss falls; then the
    steps become smaller. No derivative is needed, and nothing is random.
    """
    start = {
        "inside": machine.hardware.inside.bandwidth,
        **({} if machine.hardware.between is None else {
            "between": machine.hardware.between.bandwidth, "hop": machine.hardware.between.latency}),
        **{name: getattr(machine, name) for name in names if hasattr(machine, name)},
    }  # fmt: skip
    best = {name: start[name] for name in names}
    least = loss(runs, with_constants(machine, best))
    for step in steps:
        improved = True
        while improved:
            improved = False
            for name in names:
                for factor in (1 + step, 1 / (1 + step)):
                    tried = best | {name: best[name] * factor}
                    found = loss(runs, with_constants(machine, tried))
                    if found < least * (1 - 1e-6):
                        best, least, improved = tried, found, True
    return with_constants(machine, best)
