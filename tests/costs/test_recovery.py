"""How often to save: the formulas beside each other, beside the simulation, and beside what was published."""

import math
from statistics import mean

import pytest

from lib.costs.recovery import InterruptedRun, daly, expected_wall, goodput, simulate, time_between_failures, young

HOUR, DAY = 3600.0, 86400.0


@pytest.mark.parametrize(("save", "between"), [(1, 3600), (60, 3600), (300, 3600), (600, 1800), (120, 86400)])
def test_the_best_interval_is_where_the_expected_time_is_least(save, between):
    best = min(range(1, 20_000), key=lambda tau: -goodput(tau, save, 30, between))
    assert daly(save, between) == pytest.approx(best, rel=0.02)
    assert goodput(young(save, between), save, 30, between) == pytest.approx(goodput(best, save, 30, between), rel=0.03)


def test_young_is_the_first_term_of_daly():
    assert young(2, 10_000) == 200
    assert daly(2, 10_000) == pytest.approx(200 * (1 + 0.01 / 3 + 0.0001 / 9) - 2)
    assert daly(2, 1e12) == pytest.approx(young(2, 1e12), rel=1e-5)
    assert daly(20, 10) == daly(1000, 10) == 10


@pytest.mark.parametrize("interval", [600, 1800, 7200])
def test_random_failures_meet_the_formula(interval):
    runs = [simulate(1e6, interval, 60, 300, 3600 * 3, seed) for seed in range(60)]
    assert mean(run.wall for run in runs) == pytest.approx(expected_wall(1e6, interval, 60, 300, 3600 * 3), rel=0.02)
    assert mean(run.goodput for run in runs) == pytest.approx(goodput(interval, 60, 300, 3600 * 3), rel=0.02)
    assert mean(run.failures for run in runs) == pytest.approx(mean(run.wall for run in runs) / (3600 * 3), rel=0.05)


def test_each_second_is_counted_once():
    run = simulate(5e5, 1000, 100, 200, 5000, seed=3)
    assert run.wall == run.work + run.saving + run.lost + run.restarting
    assert run.work == 5e5
    assert run.saving == 100 * math.ceil(5e5 / 1000)
    assert run.failures > 10
    quiet = simulate(5e5, 1000, 0, 200, 1e15)
    assert quiet == InterruptedRun(5e5)
    assert quiet.goodput == 1


def test_llama_3_failed_every_three_hours():
    """Grattafiori et al. 2024, section 3.3.4: 419 unexpected interruptions in 54 days on 16,384 GPUs, and more than
    90 % of the time effective."""
    between = 54 * DAY / 419
    assert between / HOUR == pytest.approx(3.09, abs=0.01)
    assert time_between_failures(between * 16_384, 16_384) == pytest.approx(between)
    assert between * 16_384 / (365 * DAY) == pytest.approx(5.8, abs=0.1)  # years, of one GPU
    assert goodput(daly(30, between), 30, 300, between) > 0.9


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: young(0, 1), "save=0 must be above 0"),
        (lambda: daly(1, -1), "between=-1 must be above 0"),
        (lambda: time_between_failures(1, 0), "devices=0 must be above 0"),
        (lambda: goodput(1, -1, 0, 1), "save=-1 must be at least 0"),
        (lambda: simulate(1, 0, 0, 0, 1), "interval=0 must be above 0"),
        (lambda: expected_wall(float("nan"), 1, 1, 1, 1), "work=nan must be above 0"),
    ],
)
def test_what_cannot_be_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
