"""How long a step of training takes: a sum of terms, each a count over a speed.

The counts come from the shape of the model and the plan, the speeds from a `Machine`. Letters as in the glossary:
b texts of s tokens in a micro-batch, h hidden, L layers; t, p, d devices in tensor, pipeline and data parallelism; m
micro-batches of a replica.

Left out: experts, context parallelism, offloading, links that others use too.
"""

from functools import cache

from lib.costs.compute import forward_flops
from lib.costs.machine import Machine
from lib.costs.memory_terms import layer_activations, layer_parameters, stage_parameters
from lib.costs.shapes import ModelShape
from lib.costs.step_plan import StepPlan
from lib.costs.training_plan import PRECISIONS
from lib.devices.hardware import Hardware
from lib.devices.network import Ways

BYTES = 2  # of an activation, and of a parameter as it is sent
# Bytes of memory traffic per parameter in the optimizer's step: zero the sum; take the gradients over; scale; their
# norm; clip; Adam reads gradient, weight and both moments and writes three of them; the weight once more, in 16 bits.
OPTIMIZE = 2 + 6 + 8 + 4 + 8 + 28 + 6


@cache
def trip_seconds(hardware: Hardware, devices: int, stride: int, size: float, hop: float) -> float:
    """One trip round a ring of devices that are `stride` apart in the cluster: an all-gather or a reduce-scatter of
    `size` bytes, half of an all-reduce.

    `hop` is the latency of each hop of a ring that leaves a node. Every hop waits for the slowest one beside it, so all
    of them pay it; the clock's own rule (`Ways`) lets only those pay that leave the node.
    """
    if devices == 1:
        return 0.0
    ways = Ways(hardware, range(0, devices * stride, stride))
    latency = hop if "between" in ways.kinds else hardware.inside.latency
    return (devices - 1) * latency + ways.ring(0, size * (devices - 1) / devices)


def layer_seconds(shape: ModelShape, plan: StepPlan, machine: Machine) -> dict[str, float]:
    """One layer, one micro-batch, forward and backward, by term.

    A backward is twice a forward, and repeats first what is computed anew. It hides its tensor-parallel communication
    behind the weights' gradients; not so the gathers with which sequence parallelism gets the inputs of both once more.
    """
    hardware, t = machine.hardware, plan.tensor
    flops = forward_flops(shape, plan.micro_batch, plan.sequence)
    speed = hardware.flops * machine.products
    products = (sum(flops.values()) - flops["head"]) / shape.layers / t / speed
    kept = layer_activations(shape, plan)
    elementwise = machine.passes * machine.copies * sum(kept.values()) / hardware.memory_bandwidth
    # Two all-reduces in the forward: behind attention, and behind the MLP. Or as many gathers and reduce-scatters.
    hop = hardware.between.latency if t > hardware.per_node and hardware.between else 0.0
    trip = trip_seconds(hardware, t, 1, BYTES * plan.tokens * shape.hidden, hop)
    met = 4 * trip
    again = {
        None: 0.0,
        "full": products + elementwise + met,
        "selective": flops["scores"] / shape.layers / t / speed
        + machine.passes * kept["scores"] / hardware.memory_bandwidth,
    }
    times = {
        "products": 3 * products,
        "elementwise": 3 * elementwise,
        "recomputation": 0.0 if plan.fused_attention and plan.recompute == "selective" else again[plan.recompute],
        "tensor parallel": met + 2 * trip * plan.sequence_parallel,
    }
    times["accumulation"] = machine.accumulation * layer_parameters(shape, plan) / hardware.memory_bandwidth
    floor = machine.layer_floor
    if t > 1 and plan.pipeline > 1 and plan.devices > hardware.per_node:
        floor += 10 * t * machine.stall
    times["host"] = max(0.0, floor - sum(times.values()))
    return times


def head_seconds(shape: ModelShape, plan: StepPlan, machine: Machine) -> float:
    """The product with the vocabulary, forward and backward, and five passes over the logits in float32."""
    logits = plan.tokens * shape.vocabulary / plan.tensor
    arithmetic = 6 * shape.hidden * logits / (machine.hardware.flops * machine.head)
    return arithmetic + 5 * 4 * logits / machine.hardware.memory_bandwidth


def stage_times(layers: int, p: int, one: float, head: float, split: str) -> list[float]:
    """Of each stage, for one micro-batch: its layers at `one` second each, and on the last stage the head too."""
    if split == "best" and p > 1:
        # What the slowest stage may be: some layers, or some and the head; and then all layers must find a place.
        limits = sorted(extra + n * one for extra in (0.0, head) for n in range(layers + 1))
        slowest = next(
            limit
            for limit in (x * (1 + 1e-9) for x in limits)
            if limit >= head and (p - 1) * (limit // one) + (limit - head) // one >= layers
        )
        return [slowest] + [(layers * one + head - slowest) / (p - 1)] * (p - 1)
    counts = [layers / p] * p
    if split == "ends" and p > 1:
        each = (layers + 2) // p
        counts = [each - 1] + [each] * (p - 2) + [each - 1]
    return [n * one + head * (stage == p - 1) for stage, n in enumerate(counts)]


def step_seconds(shape: ModelShape, plan: StepPlan, machine: Machine) -> dict[str, float]:
    """Seconds of one step, by term. Their sum is the time of the step."""
    check_known(shape)
    hardware, d, t, p, m = machine.hardware, plan.data, plan.tensor, plan.pipeline, plan.micro_batches
    layer, head = layer_seconds(shape, plan, machine), head_seconds(shape, plan, machine)
    one = sum(layer.values())
    stages = stage_times(shape.layers, p, one, head, plan.split)
    slowest = max(stages)
    with_head = stages.index(slowest) == p - 1
    times = {name: m * (slowest - head * with_head) / one * seconds for name, seconds in layer.items()}
    times["head"] = m * head * with_head
    # The first micro-batch visits all stages; the others follow at the pace of the slowest. A split backward fills
    # what it can with weights' gradients: of F + B + W, ZB-H1 leaves F + B - W.
    filled = {"1f1b": 0, "zb-h1": 2, "zb-h2": 3}[plan.schedule]
    fill = (sum(stages) - slowest) / plan.interleaved
    times["bubble"] = 0.0 if filled == 3 else fill * (1 - filled * layer["products"] / 3 / one)
    held = max(stage_parameters(shape, plan, stage) for stage in {0, p - 1})
    if p > 1:
        link = hardware.link((0, plan.devices - 1))
        visits = m * plan.interleaved if plan.interleaved > 1 else m + p - 1
        times["pipeline sends"] = 2 * visits * BYTES * plan.tokens * shape.hidden / t / link.bandwidth
    if d > 1:
        # Where gradients are kept twice, those of 16 bits travel. ZeRO gathers weights instead of their second trip.
        gradient = PRECISIONS[plan.precision].gradient % 4 or 4
        size = (gradient + (BYTES if plan.zero else gradient)) * held
        seconds = trip_seconds(hardware, d, t, size, 2 * machine.gradient_hop)
        times["data parallel"] = max(0.0, seconds - (2 / 3 * slowest if plan.overlap else 0.0))
    times["optimizer"] = OPTIMIZE * held / (d if plan.zero else 1) / hardware.memory_bandwidth
    return times


def check_known(shape: ModelShape) -> None:
    """Raises ValueError for experts, which the model of time does not know."""
    if shape.experts > 1:
        raise ValueError(f"the model of time knows no experts, and here are {shape.experts}: see lib.costs.experts")
