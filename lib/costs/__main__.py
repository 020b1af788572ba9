"""Will it fit, how long will it take, what will it cost?

    python -m lib.costs --model llama-3-70b --devices 64 --memory 80GB --sequence 8192

`--model` is the name of a published model, or the path of a config.json of `transformers`. The answer is a table: bytes
of one device by what they are for, at the moment when it holds most; then FLOPs, days and dollars.
"""

import argparse
import textwrap
from collections.abc import Sequence
from typing import get_args

from lib.command import run_command
from lib.costs.asked import length_of, make_parser, read_bytes, read_count, reply, shape_of
from lib.costs.compute import step_flops
from lib.costs.memory import USES, moments
from lib.costs.money import TrainingRun, share_of_peak
from lib.costs.shapes import ModelShape
from lib.costs.training_plan import PRECISIONS, Optimizer, TrainingPlan
from lib.devices.aligned import aligned
from lib.devices.counts import check_counts, counted
from lib.devices.hardware import Hardware

COMMAND = "lib.costs"
WIDTH = 79  # of the answer, in characters
DOLLARS_PER_HOUR, WATTS = 2.0, 700.0  # of one device, where nothing is said


def plan_of(options: argparse.Namespace, shape: ModelShape) -> TrainingPlan:
    """The plan that the options describe: what tensor and pipeline parallelism leave of the devices are replicas.

    Raises ValueError when the devices, or the batch, do not divide.
    """
    sizes = {name: getattr(options, name) for name in ("devices", "tensor", "pipeline", "micro_batch", "batch")}
    check_counts("the options", {name: size for name, size in sizes.items() if size is not None})
    model_parallel = options.tensor * options.pipeline
    if options.devices % model_parallel:
        raise ValueError(
            f"devices={options.devices} cannot be divided into replicas of tensor={options.tensor} x "
            f"pipeline={options.pipeline} devices"
        )
    replicas = options.devices // model_parallel
    batch = options.micro_batch * replicas * options.pipeline if options.batch is None else options.batch
    if batch % (replicas * options.micro_batch):
        raise ValueError(
            f"batch={batch} texts cannot be divided over {replicas} replicas in micro-batches of "
            f"{options.micro_batch}: take a multiple of {replicas * options.micro_batch}"
        )
    plan = TrainingPlan(
        length_of(options, shape),
        options.micro_batch,
        batch // (replicas * options.micro_batch),
        replicas,
        options.tensor,
        options.pipeline,
        options.zero,
        options.sequence_parallel,
        options.recompute,
        precision=options.precision,
        optimizer=options.optimizer,
        fused_attention=not options.written_out_attention,
        chunks=options.chunks,
    )
    plan.check(shape)
    return plan


def answer(shape: ModelShape, plan: TrainingPlan, options: argparse.Namespace) -> str:
    """The whole answer, as text."""
    hardware = Hardware.preset(options.hardware)
    memory = hardware.memory if options.memory is None else read_bytes(options.memory)
    stages = sorted({0, plan.pipeline - 1})
    each = {stage: moments(shape, plan, stage) for stage in stages}
    fullest, moment = max(((s, m) for s, ms in each.items() for m in ms), key=lambda pair: pair[1].total)
    lines = [
        f"{options.model}: {shape.parameters:,} parameters"
        + (f", {shape.active_parameters:,} of them active" if shape.experts > 1 else ""),
        f"{counted(plan.devices, 'device')}: data {plan.data} x tensor {plan.tensor} x pipeline {plan.pipeline}, "
        f"ZeRO {plan.zero}",
        f"{counted(plan.global_batch, 'text')} of {counted(plan.sequence, 'token')} per step: "
        f"{plan.micro_batches} x {plan.micro_batch} for each replica",
        "",
        f"Bytes of one device (stage {fullest} of {plan.pipeline}), at {moment.name}:",
    ]
    rows = [(use, getattr(moment, use)) for use in USES] + [("sum", moment.total)]
    over = moment.total - memory
    verdict = f"does not fit: {over / 1e9:,.2f} GB too much" if over > 0 else f"fits: {-over / 1e9:,.2f} GB are left"
    table = [[use, f"{size / 1e9:,.2f} GB", f"{size / moment.total:>4.0%}"] for use, size in rows]
    table += [["the device", f"{memory / 1e9:,.2f} GB", verdict]]
    lines += [*(f"  {line}" for line in aligned(table, left=(0, 2))), ""]
    tokens = plan.global_batch * plan.sequence
    model = step_flops(shape, plan.global_batch, plan.sequence)
    hardware_flops = step_flops(shape, plan.global_batch, plan.sequence, plan.recompute)
    step = TrainingRun(model, plan.devices, hardware.flops, options.mfu)
    hfu = share_of_peak(hardware_flops, step.seconds, plan.devices, hardware.flops)
    lines += _wrapped(
        f"One step: {tokens:,} tokens, {model:.3g} FLOPs of the model; at an MFU of {options.mfu:.0%} of "
        f"{hardware.flops / 1e12:,.0f} TFLOP/s ({hardware.name}): {step.seconds:,.3g} s, HFU {hfu:.0%}"
    )
    if options.tokens is not None:
        count = read_count(options.tokens)
        dollars = DOLLARS_PER_HOUR if options.dollars_per_hour is None else options.dollars_per_hour
        watts = WATTS if options.watts is None else options.watts
        run = TrainingRun(model / tokens * count, plan.devices, hardware.flops, options.mfu, dollars, watts)
        lines += _wrapped(
            f"{count:,.0f} tokens: {run.flops:.3g} FLOPs, {run.days:,.4g} days, {run.device_hours:,.0f} device hours, "
            f"${run.dollars:,.0f} at ${dollars:g} an hour, {run.kilowatt_hours:,.0f} kWh at "
            f"{watts:g} W"
        )
    elif options.dollars_per_hour is not None or options.watts is not None:
        raise ValueError("--dollars-per-hour and --watts are for a whole training: say how long with --tokens")
    return "\n".join(lines)


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def parser() -> argparse.ArgumentParser:
    """The options, each with what it means."""
    p = make_parser(COMMAND, __doc__)
    precisions = f"one of {', '.join(map(repr, PRECISIONS))} (%(default)s)"
    p.add_argument("--tensor", type=int, default=1, help="devices that split each layer (%(default)s)")
    p.add_argument("--pipeline", type=int, default=1, help="stages of layers (%(default)s)")
    p.add_argument("--zero", type=int, default=0, choices=range(4), help="stage of ZeRO over replicas (%(default)s)")
    p.add_argument("--sequence-parallel", action="store_true", help="between layers, cut the texts over --tensor too")
    p.add_argument("--recompute", choices=("selective", "full"), help="the scores, or whole layers (nothing)")
    p.add_argument("--batch", type=int, help="texts of a step, over all replicas (a micro-batch for each stage)")
    p.add_argument("--micro-batch", type=int, default=1, help="texts that a replica takes at once (%(default)s)")
    p.add_argument("--chunks", type=int, default=1, help="pieces of the tokens for the loss (%(default)s)")
    p.add_argument("--precision", choices=PRECISIONS, default="mixed", metavar="NAME", help=precisions)
    p.add_argument("--optimizer", choices=get_args(Optimizer), default="adam", help="(%(default)s)")
    p.add_argument("--written-out-attention", action="store_true", help="scores are stored, as without FlashAttention")
    p.add_argument(
        "--mfu", type=float, default=0.4, help="share of the peak that the model's FLOPs reach (%(default)s)"
    )
    p.add_argument("--tokens", help="of the whole training, such as 300B or 15.6T")
    p.add_argument("--dollars-per-hour", type=float, help=f"of one device ({DOLLARS_PER_HOUR:g})")
    p.add_argument("--watts", type=float, help=f"of one device ({WATTS:g})")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 2 with one sentence when what was asked cannot be."""
    options = parser().parse_args(arguments)

    def say() -> str:
        if options.model is None:
            raise ValueError("give --model")
        shape = shape_of(options.model)
        return answer(shape, plan_of(options, shape), options)

    return reply(COMMAND, say)


if __name__ == "__main__":
    run_command(main)
