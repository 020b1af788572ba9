"""How often to save: what failures cost a training, and what it costs to be ready for them.

A training of n devices stops whenever one of them fails, so the time between failures is that of one device over n.
Saving often costs time; saving rarely loses more when it happens. Between the two there is a best interval:

    Young 1974:  sqrt(2 * save * between)            to first order
    Daly 2006:   with the next terms, for failures that come quickly

All times in seconds. Failures are independent and have no memory: each second is as dangerous as any other.
J. W. Young, CACM 17(9); J. T. Daly, Future Generation Computer Systems 22(3), whose equation 20 is `expected_wall`.
"""

import math
import random
from dataclasses import dataclass


def time_between_failures(of_one_device: float, devices: int) -> float:
    """Seconds between two failures somewhere among `devices`."""
    _check(of_one_device=of_one_device, devices=devices)
    return of_one_device / devices


def young(save: float, between: float) -> float:
    """Seconds of work between two checkpoints, after Young: right while `save` is small beside `between`."""
    _check(save=save, between=between)
    return math.sqrt(2 * save * between)


def daly(save: float, between: float) -> float:
    """The same after Daly. Where saving takes longer than two failures are apart, `between` is the best there is."""
    _check(save=save, between=between)
    if save >= 2 * between:
        return between
    x = math.sqrt(save / (2 * between))
    return math.sqrt(2 * save * between) * (1 + x / 3 + x * x / 9) - save


def expected_wall(work: float, interval: float, save: float, restart: float, between: float) -> float:
    """Seconds from the start to the end of `work` seconds of training, failures and all, on the average.

    Each piece of `interval` seconds is done when it has been computed and saved without a failure; a failure costs
    `restart` seconds, in which another may happen.
    """
    _check(work=work, interval=interval, between=between)
    _check(zero=True, save=save, restart=restart)
    return work / interval * between * math.exp(restart / between) * math.expm1((interval + save) / between)


def goodput(interval: float, save: float, restart: float, between: float) -> float:
    """The share of the time in which the training gets on. 1 would be a machine that neither fails nor saves."""
    return interval / expected_wall(interval, interval, save, restart, between)


@dataclass(frozen=True)
class InterruptedRun:
    """Where the time of one training that fails now and then went, in seconds; and how often it failed."""

    work: float
    saving: float = 0.0
    lost: float = 0.0  # computed or saved, and gone with a failure before the checkpoint was whole
    restarting: float = 0.0
    failures: int = 0

    @property
    def wall(self) -> float:
        """From the start to the end."""
        return self.work + self.saving + self.lost + self.restarting

    @property
    def goodput(self) -> float:
        """The share of the time in which the training got on."""
        return self.work / self.wall


def simulate(
    work: float, interval: float, save: float, restart: float, between: float, seed: int = 0
) -> InterruptedRun:
    """One training with failures at random moments: what `expected_wall` is the average of."""
    _check(work=work, interval=interval, between=between)
    _check(zero=True, save=save, restart=restart)
    stream = random.Random(seed)
    to_failure = stream.expovariate(1 / between)
    done = saving = lost = restarting = 0.0
    failures = 0
    while done < work:
        step = min(interval, work - done)
        if to_failure > step + save:
            # As many as there is time for, at once: most machines work most of the time.
            many = max(1, int(min(to_failure / (step + save), (work - done) / step)))
            to_failure -= many * (step + save)
            done, saving = done + many * step, saving + many * save
            continue
        lost, failures = lost + to_failure, failures + 1
        to_failure = stream.expovariate(1 / between)
        while to_failure < restart:  # it fails again before it has begun
            restarting, failures = restarting + to_failure, failures + 1
            to_failure = stream.expovariate(1 / between)
        to_failure -= restart
        restarting += restart
    return InterruptedRun(work, saving, lost, restarting, failures)


def _check(zero: bool = False, **numbers: float) -> None:
    for name, value in numbers.items():
        if not (value >= 0 if zero else value > 0):
            raise ValueError(f"{name}={value} must be {'at least' if zero else 'above'} 0")
