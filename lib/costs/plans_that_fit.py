"""All valid ways to train a model on so many devices, without those that do not fit, fastest first.

What is tried: every grid of `valid_configs` with tensor groups of at most two nodes, micro-batches of 1 to 16 texts,
ZeRO 0 and 1, with and without recomputation, and up to four stages on each pipeline device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from lib.costs.machine import A100_RUNS, H100_RUNS, Machine
from lib.costs.shapes import ModelShape
from lib.costs.step_plan import StepPlan
from lib.costs.time import check_known, step_seconds
from lib.costs.will_it_fit import Room, room_needed
from lib.devices.counts import check_counts, counted
from lib.devices.hardware import Hardware
from lib.parallel.grid.config import ParallelConfig, valid_configs
from lib.parallel.grid.nearest import divisors

MICRO_BATCHES = (1, 2, 4, 8, 16)  # texts
MOST_DEVICES = 2**20


@dataclass(frozen=True)
class Proposal:
    """A plan, what a step of it takes, term by term in seconds, and what a device needs."""

    plan: StepPlan
    terms: dict[str, float]
    room: Room

    @property
    def seconds(self) -> float:
        """Of one step."""
        return sum(self.terms.values())

    @property
    def grid(self) -> tuple[int, int, int]:
        """Data, tensor, pipeline."""
        return self.plan.data, self.plan.tensor, self.plan.pipeline


class NothingFits(ValueError):
    """No plan fits into the memory of a device. `nearest` is the one that needs least."""

    def __init__(self, nearest: Proposal, memory: float, enough: int | None):
        self.nearest, self.memory, self.enough = nearest, memory, enough
        room = nearest.room
        largest = sorted(room.parts.items(), key=lambda part: -part[1])[:3]
        more = f"; {enough:,} such devices would be enough" if enough else ""
        super().__init__(
            f"no plan fits on {counted(nearest.plan.devices, 'device')}. The nearest, {describe(nearest.plan)}, needs "
            f"{room.total / 1e9:,.1f} GB of each device, and {memory / 1e9:,.1f} GB are there: "
            f"{(room.total - memory) / 1e9:,.1f} GB are short. Most of it: "
            + ", ".join(f"{name} {size / 1e9:,.1f} GB" for name, size in largest)
            + more
        )


def describe(plan: StepPlan) -> str:
    """In a few words: "TP 8 x PP 4 x DP 2, micro-batch 1, ZeRO 1"."""
    axes = (("TP", plan.tensor), ("PP", plan.pipeline), ("DP", plan.data))
    words = [" x ".join(f"{name} {size}" for name, size in axes if size > 1) or "one device"]
    words.append(f"micro-batch {plan.micro_batch}")
    words += [f"{plan.interleaved} stages each"] * (plan.interleaved > 1)
    words += [f"ZeRO {plan.zero}"] * (plan.zero > 0)
    words += ["all recomputed" if plan.recompute == "full" else "scores recomputed"] * (plan.recompute is not None)
    return ", ".join(words)


def machine_named(name: str) -> Machine:
    """The machine of a preset of `Hardware`. Only "A100" and "H100" were calibrated; others get the shares of the
    nearest of the two. Without the stall: it belongs to the software that was measured.

    Raises ValueError with the list of names for any other.
    """
    hardware, calm = Hardware.preset(name), replace(H100_RUNS, stall=0.0)
    if name in ("A100", "H100"):
        return {"A100": A100_RUNS, "H100": calm}[name]
    return replace(calm if hardware.flops > 2 * A100_RUNS.hardware.flops else A100_RUNS, hardware=hardware)


def plan_on(config: ParallelConfig, sequence: int, micro_batch: int = 1, **more: Any) -> StepPlan:
    """The plan of a grid. Raises ValueError for axes that the model of time does not know: cp and ep."""
    if config.cp > 1 or config.ep > 1:
        raise ValueError(
            f"cp={config.cp}, ep={config.ep}: the model of time knows data, tensor and pipeline parallelism only; take "
            "cp=1 and ep=1"
        )
    return StepPlan(
        sequence, micro_batch, config.micro_batches, config.dp, config.tp, config.pp, config.zero,
        config.sequence_parallel, config.recompute, interleaved=config.chunks, **more,
    )  # fmt: skip


def candidates(shape: ModelShape, devices: int, batch: int, sequence: int, per_node: int = 8) -> Iterator[StepPlan]:
    """Every plan that is tried, `batch` texts of `sequence` tokens in a step. Raises ValueError for sizes below 1,
    and for devices that nobody could list.
    """
    check_counts("the planner", {"devices": devices, "batch": batch, "sequence": sequence, "per_node": per_node})
    if devices > MOST_DEVICES:
        raise ValueError(f"the planner: devices={devices:,} are more than it plans for, {MOST_DEVICES:,}")
    check_known(shape)
    for t in divisors(devices):
        for p in divisors(devices // t):
            if t > 2 * per_node or p > shape.layers or batch % (d := devices // (t * p)):
                continue
            texts = batch // d  # of a replica
            micro = {texts // b: b for b in MICRO_BATCHES if texts % b == 0 and texts // b >= p}
            even = shape.layers % p == 0  # else the stages differ by a layer, and are not interleaved
            grids = valid_configs(
                devices, shape, sequence, batch, tp=(t,), pp=(p,), cp=(1,), ep=(1,), micro_batches=tuple(micro),
                chunks=(1, 2, 3, 4) if p > 1 and even else (1,), zero=(0, 1) if d > 1 else (0,),
                recompute=(None, "full"), sequence_parallel=(t > 1,), uneven_stages=(not even,),
            )  # fmt: skip
            for grid in grids:
                yield plan_on(
                    grid, sequence, micro[grid.micro_batches], precision="mixed, float32 gradients",
                    overlap=grid.zero == 0, split="equal" if even else "best",
                )  # fmt: skip


def judge(shape: ModelShape, plan: StepPlan, machine: Machine) -> Proposal:
    """The plan with its price."""
    return Proposal(plan, step_seconds(shape, plan, machine), room_needed(shape, plan, machine))


@lru_cache(maxsize=16)
def judged(
    shape: ModelShape, devices: int, batch: int, sequence: int, machine: Machine
) -> tuple[tuple[Proposal, ...], tuple[Proposal, ...]]:
    """All candidates: those that fit, fastest first, and those that do not, the leanest first."""
    memory, found = machine.hardware.memory, ([], [])
    for plan in candidates(shape, devices, batch, sequence, machine.hardware.per_node):
        one = judge(shape, plan, machine)
        found[one.room.total > memory].append(one)
    fitting, rest = found
    return tuple(sorted(fitting, key=lambda one: one.seconds)), tuple(sorted(rest, key=lambda one: one.room.total))


def propose(shape: ModelShape, devices: int, batch: int, sequence: int, machine: Machine) -> tuple[Proposal, ...]:
    """Those that fit, fastest first. Raises NothingFits, and ValueError where no grid is valid at all."""
    fitting, rest = judged(shape, devices, batch, sequence, machine)
    if not fitting and not rest:
        raise ValueError(
            f"no grid of {counted(devices, 'device')} is valid for {counted(shape.layers, 'layer')}, "
            f"{counted(shape.heads, 'head')} and a batch of "
            f"{batch}: ParallelConfig(...).problems says which rules a grid breaks. The devices should divide the batch"
        )
    if not fitting:
        raise NothingFits(rest[0], machine.hardware.memory, _enough(shape, devices, sequence, machine))
    return fitting


def best_grids(proposals: Sequence[Proposal], count: int = 3) -> list[Proposal]:
    """The fastest plan of each of the `count` fastest grids."""
    found: dict[tuple[int, int, int], Proposal] = {}
    for one in proposals:
        found.setdefault(one.grid, one)
    return list(found.values())[:count]


def _enough(shape: ModelShape, devices: int, sequence: int, machine: Machine) -> int | None:
    """The first doubling of the devices on which some plan fits; None where the links end before."""
    while (devices := 2 * devices) <= MOST_DEVICES:
        if machine.hardware.between is None and devices > machine.hardware.per_node:
            return None
        for plan in candidates(shape, devices, devices, sequence, machine.hardware.per_node):
            lean = plan.micro_batch == 1 and plan.recompute == "full" and (plan.zero or plan.data == 1)
            if lean and room_needed(shape, plan, machine).total <= machine.hardware.memory:
                return devices
    return None


def rule_of_thumb(shape: ModelShape, devices: int, per_node: int = 8) -> dict[str, int]:
    """The grid of a widespread rule, as {"data": ..., "tensor": ..., "pipeline": ..., "interleaved": ...}.

    Below 1B: data parallelism alone; 1B to 10B: tensor over the node; 10B to 100B: tensor 8 and as many stages as
    there are nodes, 8 at most; above: tensor 8, data 8, and the rest stages, interleaved.
    """
    size = shape.parameters
    tensor = 1 if size < 1e9 else min(per_node, devices)
    nodes = max(1, devices // per_node)
    pipeline = 1 if size < 10e9 else min(8, nodes) if size <= 100e9 else max(1, nodes // 8)
    grid = {"data": devices // (tensor * pipeline), "tensor": tensor, "pipeline": pipeline}
    return {**grid, "interleaved": 2 if size > 100e9 and pipeline > 1 else 1}
