"""What is measured, how large, how often; and the few helpers that all parts share."""

import resource
import sys
import time
from dataclasses import dataclass
from statistics import median, quantiles
from typing import NamedTuple


@dataclass(frozen=True)
class Plan:
    """Sizes and repetitions of one bench. `FULL` is the bench; `QUICK` proves in seconds that it works."""

    batch: int = 4
    tokens: int = 256
    width: int = 768
    hidden: int = 3072
    heads: int = 12
    devices: tuple[int, ...] = (1, 2, 4, 8, 12)
    in_block: tuple[int, ...] = (1, 2, 4, 12)
    local_tensor: tuple[int, ...] = (4,)
    processes: tuple[int, ...] = (2, 4)
    clusters: tuple[int, ...] = (8, 64, 256, 1024)
    in_memory: tuple[int, ...] = (1, 4, 12)
    layers: int = 12
    vocabulary: int = 50257
    text: int = 256  # tokens, for all of GPT-2
    in_gpt: tuple[int, ...] = (4,)
    long_text: int = 4096  # tokens, for attention over a sequence that is cut
    in_pipeline: tuple[int, ...] = (4,)
    micros: int = 8
    in_ring: tuple[int, ...] = (1, 8)
    meta_layers: int = 96
    warm_up: int = 1  # rounds before those that count
    rounds: int = 5
    long_rounds: int = 3  # of what takes seconds per step
    steps: int = 1
    calls: int = 10_000  # collectives per measurement, all devices together


FULL = Plan()
QUICK = Plan(
    2, 8, 48, 96, devices=(1, 4), in_block=(4, 12), local_tensor=(2,), processes=(2,), clusters=(2, 8), in_memory=(4,),
    in_pipeline=(2,), micros=2, layers=2, vocabulary=101, text=8, long_text=32, meta_layers=2, warm_up=0, rounds=1,
    long_rounds=1, calls=64,
)  # fmt: skip


class Reading(NamedTuple):
    """What has passed. The seconds of all cores together (`cpu`) are what other programs disturb least."""

    wall: float
    cpu: float
    faults: int


def now() -> Reading:
    """The clocks and the page faults of this process. They only rise; `spent` subtracts them."""
    return Reading(time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt)


def spent(marks: list[tuple[Reading, Reading]]) -> Reading:
    """From the first start to the last end, of the (start, end) readings of several devices of one process."""
    starts, ends = zip(*marks, strict=True)
    first, last = map(min, zip(*starts, strict=True)), map(max, zip(*ends, strict=True))
    return Reading(*(end - start for start, end in zip(first, last, strict=True)))


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median(values), "low": low, "high": high}


def progress(text: str) -> None:
    """One line on stderr; stdout is for the table."""
    print(text, file=sys.stderr, flush=True)
