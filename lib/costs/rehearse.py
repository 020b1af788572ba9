"""The book's own clock as a predictor: one layer run on `meta`, and a schedule of the pipeline chapter around it.

No formula says here what a layer costs. A `ParallelBlock` runs forward and backward on simulated devices, and the clock
charges every kernel and every collective. Fitted is one number, the `efficiency` of the hardware.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch.nn import functional as F

from lib.costs.memory_terms import stage_parameters
from lib.costs.shapes import ModelShape
from lib.costs.step_plan import StepPlan
from lib.costs.time import OPTIMIZE
from lib.costs.training_plan import PRECISIONS
from lib.devices import Cluster, Group, Hardware
from lib.devices.network import Ways
from lib.parallel.gpt.block import ParallelBlock
from lib.parallel.pipeline.clock import Times, timeline
from lib.parallel.pipeline.schedules import interleaved, one_f_one_b, zb_h1, zb_h2
from lib.parallel.sequence.model import SequenceBlock


@dataclass(frozen=True)
class Layer:
    """Seconds of a layer on the clock, for one micro-batch: forward, and the backward for inputs and for weights; and
    of the head, forward and backward together."""

    forward: float
    input: float
    weight: float
    head: float


def rehearsed_layer(shape: ModelShape, plan: StepPlan, hardware: Hardware) -> Layer:
    """Runs one layer and the head, in 16 bits and without data. The time of making parameters does not count."""
    alone = replace(
        plan, micro_batches=1, data=1, pipeline=1, zero=0, interleaved=1, schedule="1f1b", split="equal", overlap=False
    )
    return _run(replace(shape, layers=1), alone, hardware)  # the same run for all plans that agree in the rest


@cache
def _run(shape: ModelShape, plan: StepPlan, hardware: Hardware) -> Layer:
    cluster = Cluster(plan.tensor, hardware=hardware)

    def program(group: Group) -> None:
        make = SequenceBlock if plan.sequence_parallel else ParallelBlock
        tokens = plan.sequence // (plan.tensor if plan.sequence_parallel else 1)
        with torch.device("meta"):
            dropout = 0.1 if plan.dropout else 0.0
            block = make(shape.hidden, shape.heads, group, dropout=dropout, recompute=plan.recompute).bfloat16()
            x, dy = (torch.empty(plan.micro_batch, tokens, shape.hidden, dtype=torch.bfloat16) for _ in range(2))
            last = torch.empty(plan.tokens, shape.hidden, dtype=torch.bfloat16, requires_grad=True)
            rows = torch.empty(shape.vocabulary // plan.tensor, shape.hidden, dtype=torch.bfloat16, requires_grad=True)
            target = torch.empty(plan.tokens, dtype=torch.long)
        x.requires_grad_()
        with group.span("forward"):
            y = block(x)
        with group.span("backward"):
            y.backward(dy)
        with group.span("head"):
            F.cross_entropy(F.linear(last, rows).float(), target).backward()

    cluster.run(program)
    seconds = {name: cluster.trace.during(name).seconds for name in ("forward", "backward", "head")}
    # The half of the backward for the weights: its products are those of the forward without the scores.
    products = 2 * plan.tokens * 12 * shape.hidden**2 / plan.tensor / hardware.reached
    return Layer(seconds["forward"], seconds["backward"] - products, products, seconds["head"])


def rehearsed_step(shape: ModelShape, plan: StepPlan, hardware: Hardware) -> float:
    """Seconds of a step: the layers in their stages by the schedule's own clock, then gradients and optimizer."""
    layer, p, m, v = rehearsed_layer(shape, plan, hardware), plan.pipeline, plan.micro_batches, plan.interleaved
    counts = [shape.layers / (p * v)] * (p * v)
    if plan.split == "ends":
        each = (shape.layers + 2) // p
        counts = [each - 1] + [each] * (p - 2) + [each - 1]
    elif plan.split == "best" and p > 1:  # whole layers, the last stage with as many less as the head is worth
        each = (shape.layers + 2) // (p * v)
        short = each * p * v - shape.layers
        last = max(0, each - short)  # what it has not to give, the first one has less
        counts = [2 * each - last - short] + [each] * (p * v - 2) + [last]
    head = [0.0] * (p * v - 1) + [layer.head]
    size = 2 * plan.tokens * shape.hidden / plan.tensor
    link = hardware.link((0, plan.devices - 1)) if p > 1 else hardware.inside
    times = Times(
        tuple(n * layer.forward + extra / 3 for n, extra in zip(counts, head, strict=True)),
        tuple(n * layer.input + extra / 3 for n, extra in zip(counts, head, strict=True)),
        tuple(n * layer.weight + extra / 3 for n, extra in zip(counts, head, strict=True)),
        message=link.seconds(1, size) if p > 1 else 0.0,
    )
    if v > 1:
        schedule = interleaved(p, m, v)
    else:
        schedule = {"1f1b": one_f_one_b, "zb-h1": zb_h1, "zb-h2": zb_h2}[plan.schedule](p, m)
    lanes = timeline(schedule, times)
    # The next step may begin on a device while others still end this one.
    seconds = max(lane[-1].end - lane[0].start for lane in lanes)
    held = max(stage_parameters(shape, plan, stage) for stage in {0, p - 1})
    if plan.data > 1:
        ways = Ways(hardware, range(0, plan.data * plan.tensor, plan.tensor))
        size = (PRECISIONS[plan.precision].gradient % 4 or 4) * held
        seconds += ways.ring(2, 2 * size * (plan.data - 1) / plan.data)
    return seconds + OPTIMIZE * held / hardware.memory_bandwidth
