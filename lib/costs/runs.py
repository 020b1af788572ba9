"""Measured steps of training, as their authors published them: what a model of time is held against.

    SC21    Narayanan et al. 2021, arXiv 2104.04473, table 1: A100, everything recomputed
    K22     Korthikanti et al. 2022, arXiv 2205.05198, tables 3 and 5: A100, two ways to save memory
    ZB      Qi et al. 2023, arXiv 2401.10241, tables 3 and 4: A100, pipelines with three schedules
    H100    The Ultra-Scale Playbook (Hugging Face, nanotron): configurations on 8 to 512 H100s, in `h100_runs.csv`

Of each table this has about half of the rows; the rest is kept back, so that nobody can fit to all of it.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lib.costs.shapes import ModelShape
from lib.costs.step_plan import StepPlan


@dataclass(frozen=True)
class Run:
    """One row of a table. `seconds` of a step; None where the run crashed, mostly for want of memory. `memory` in bytes
    of a device, None where it was not told."""

    table: str
    name: str
    shape: ModelShape
    plan: StepPlan
    seconds: float | None
    memory: float | None = None

    @property
    def nodes(self) -> int:
        """Of 8 devices."""
        return -(-self.plan.devices // 8)


def _gpt(layers: int, hidden: int, heads: int, sequence: int = 2048) -> ModelShape:
    return ModelShape.gpt(layers, hidden, heads, vocabulary=51200, positions=sequence)


_A100 = {"fused_attention": False, "dropout": True, "precision": "mixed, gradients twice"}

# parameters in 1e9, heads, hidden, layers, tensor, pipeline, devices, texts, TFLOP/s of a device, micro-batch, chunks
_SC21 = (
    (1.7, 24, 2304, 24, 1, 1, 32, 512, 137, 16, 1),
    (7.5, 32, 4096, 36, 4, 1, 128, 512, 142, 16, 1),
    (39.1, 64, 8192, 48, 8, 2, 512, 1536, 138, 4, 1),
    (145.6, 96, 12288, 80, 8, 8, 1536, 2304, 148, 2, 2),
    (529.6, 128, 20480, 105, 8, 35, 2520, 2520, 163, 1, 3),
)


def sc21() -> Iterator[Run]:
    """Published is the speed, with all that is recomputed counted; the time follows by the paper's equation 3."""
    for billions, heads, hidden, layers, t, p, devices, texts, tera, micro, chunks in _SC21:
        d = devices // t // p
        flops = 96 * texts * 2048 * layers * hidden**2 * (1 + 2048 / (6 * hidden) + 51200 / (16 * layers * hidden))
        plan = StepPlan(2048, micro, texts // d // micro, d, t, p, recompute="full", interleaved=chunks, **_A100)
        yield Run("SC21", f"{billions}B", _gpt(layers, hidden, heads), plan, flops / (tera * 1e12 * devices))


# name, heads, hidden, layers, pipeline, micro-batch, micro-batches, chunks; seconds with all recomputed, and with only
# the scores, beside sequence parallelism. Tensor parallelism over 8, no replicas.
_K22 = (
    ("22B", 64, 6144, 48, 1, 4, 1, 1, 1.42, 1.10),
    ("530B", 128, 20480, 105, 35, 1, 280, 3, 49.05, 37.83),
)


def k22() -> Iterator[Run]:
    """Two rows for each model: how it was trained before the paper, and after."""
    for name, heads, hidden, layers, p, micro, m, chunks, *both in _K22:
        for recompute, seconds in zip(("full", "selective"), both, strict=True):
            plan = StepPlan(
                2048, micro, m, 1, 8, p, sequence_parallel=recompute == "selective", recompute=recompute,
                interleaved=chunks, **_A100,
            )  # fmt: skip
            yield Run("K22", f"{name}, {recompute}", _gpt(layers, hidden, heads), plan, seconds)


# name, layers, heads, hidden, stages, micro-batch, chunks when interleaved; then (schedule, micro-batches, samples/s).
_ZB = (
    (("1.5B", 22, 24, 2304, 8, 6, 3), "zb-h2 24 14.5, zb-h2 64 14.9, zb-h1 32 13.4, 1f1b 24 11.8, 1f1b 64 13.6, "
     "interleaved 32 13.4"),
    (("6.2B", 30, 32, 4096, 8, 3, 4), "zb-h2 24 4.32, zb-h2 64 4.39, zb-h1 32 4.0, 1f1b 24 3.5, 1f1b 64 4.03, "
     "interleaved 32 4.08"),
    (("14.6B", 46, 40, 5120, 16, 1, 3), "zb-h2 48 1.81, zb-h2 128 1.85, zb-h1 64 1.67, 1f1b 48 1.4, 1f1b 128 1.64, "
     "interleaved 64 1.59"),
    (("28.3B", 62, 48, 6144, 32, 1, 2), "zb-h2 96 0.99, zb-h2 256 1.0, zb-h1 128 0.9, 1f1b 96 0.76, 1f1b 256 0.88, "
     "interleaved 128 0.85"),
)  # fmt: skip


def zero_bubble() -> Iterator[Run]:
    """A pipeline alone. With two layers less than a multiple of the stages: the ends have one less each."""
    for (name, layers, heads, hidden, p, micro, chunks), rows in _ZB:
        for row in rows.split(", "):
            schedule, m, speed = row.split()
            alone = schedule != "interleaved"
            plan = StepPlan(
                1024, micro, int(m), pipeline=p, schedule=schedule if alone else "1f1b",
                interleaved=1 if alone else chunks, split="ends" if alone else "best", **_A100,
            )  # fmt: skip
            seconds = int(m) * micro / p / float(speed)
            yield Run("ZB", f"{name}, {schedule}, m={m}", _gpt(layers, hidden, heads, 1024), plan, seconds)


# layers, hidden, heads, inner, whether the head is the embedding once more
_NANOTRON = {
    "1B": (16, 2048, 32, 8192, True),
    "3B": (28, 3072, 32, 8192, True),  # elsewhere 24 heads, but it ran on 16 and on 32 tensor-parallel devices
    "8B": (32, 4096, 32, 14336, False),
    "80B": (80, 8192, 64, 28672, False),
}


@cache
def h100() -> tuple[Run, ...]:
    """The sweep, in the order in which it was published. All texts have 4,096 tokens, and a step has 256 of them."""
    found = []
    with (Path(__file__).parent / "h100_runs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            layers, hidden, heads, inner, tied = _NANOTRON[row["model"]]
            nodes, t, p, zero, micro, m = (
                int(row[name]) for name in ("nodes", "tp", "pp", "zero", "micro_batch", "micro_batches")
            )
            d = 8 * nodes // (t * p)
            shape = ModelShape.llama(layers, hidden, heads, heads, inner, 128256, tied=tied)
            plan = StepPlan(
                4096, micro, m, d, t, p, zero, t > 1, precision="mixed, float32 gradients",
                split="best" if p > 1 else "equal", overlap=zero == 0,
            )  # fmt: skip
            ran = bool(row["tokens_per_s"])
            seconds = plan.global_batch * 4096 / plan.devices / float(row["tokens_per_s"]) if ran else None
            memory = float(row["memory_gb"]) * 1e9 if ran else None
            found.append(Run("H100", row["model"], shape, plan, seconds, memory))
    return tuple(found)


def a100() -> tuple[Run, ...]:
    """The three tables of A100s."""
    return (*sc21(), *k22(), *zero_bubble())
