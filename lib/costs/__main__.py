"""Will it fit, how long will it take, what will it cost?

    python -m lib.costs --model llama-3-70b --devices 64 --memory 80GB --sequence 8192

`--model` is the name of a published model, or the path of a config.json of `transformers`. The answer is a table: bytes
of one device by what they are for, at the moment when it holds most; then FLOPs, days and dollars.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from lib.costs.compute import step_flops
from lib.costs.memory import USES, moments
from lib.costs.money import TrainingRun, share_of_peak
from lib.costs.shapes import MODELS, ModelShape
from lib.costs.training_plan import PRECISIONS, TrainingPlan
from lib.devices.aligned import aligned
from lib.devices.hardware import PRESETS

UNITS = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def size_in_bytes(text: str) -> float:
    """ "80GB" -> 80e9, "80GiB" -> 80 * 2**30. Raises ValueError for bits ("Gb") and for what is no size."""
    found = re.fullmatch(r"([\d.]+) *([KMGT]?i?[Bb])?", text.strip())
    if not found or (unit := found[2] or "").endswith("b") or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is no size of a memory: write 80GB (1e9 bytes each) or 80GiB (2**30)")
    return float(found[1]) * UNITS[unit.upper()]


def number(text: str) -> float:
    """ "15.6T" -> 15.6e12, "300B" -> 300e9, "2e12" as it is."""
    found = re.fullmatch(r"([\d.]+(?:e\d+)?) *([KMBT]?)", text.strip(), re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is no number of tokens: write 300B, 15.6T or 2e12")
    return float(found[1]) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[found[2].upper()]


def shape_of(model: str) -> ModelShape:
    """By its published name; what looks like a path is that of a config.json."""
    return ModelShape.from_config(model) if "/" in model or model.endswith(".json") else ModelShape.preset(model)


def plan_of(options: argparse.Namespace, shape: ModelShape) -> TrainingPlan:
    """The plan that the options describe: what tensor and pipeline parallelism leave of the devices are replicas.

    Raises ValueError when the devices, or the batch, do not divide.
    """
    model_parallel = options.tensor * options.pipeline
    if options.devices < 1 or model_parallel < 1 or options.devices % model_parallel:
        raise ValueError(
            f"devices={options.devices} cannot be divided into replicas of tensor={options.tensor} x "
            f"pipeline={options.pipeline} devices"
        )
    replicas = options.devices // model_parallel
    batch = options.batch or options.micro_batch * replicas * options.pipeline
    if batch % (replicas * options.micro_batch):
        raise ValueError(
            f"batch={batch} texts cannot be divided over {replicas} replicas in micro-batches of "
            f"{options.micro_batch}: take a multiple of {replicas * options.micro_batch}"
        )
    plan = TrainingPlan(
        (shape.learned_positions or 4096) if options.sequence is None else options.sequence,
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
    hardware = PRESETS[options.hardware]
    memory = size_in_bytes(options.memory) if options.memory else hardware.memory
    stages = sorted({0, plan.pipeline - 1})
    each = {stage: moments(shape, plan, stage) for stage in stages}
    fullest, moment = max(((s, m) for s, ms in each.items() for m in ms), key=lambda pair: pair[1].total)
    lines = [
        f"{options.model}: {shape.parameters:,} parameters"
        + (f", {shape.active_parameters:,} of them active" if shape.experts > 1 else ""),
        f"{plan.devices} devices: data {plan.data} x tensor {plan.tensor} x pipeline {plan.pipeline}, ZeRO {plan.zero}",
        f"{plan.global_batch} texts of {plan.sequence} tokens per step: {plan.micro_batches} x {plan.micro_batch} for "
        "each replica",
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
    lines += [
        f"One step: {tokens:,} tokens, {model:.3g} FLOPs of the model; at an MFU of {options.mfu:.0%} of "
        f"{hardware.flops / 1e12:,.0f} TFLOP/s ({hardware.name}): {step.seconds:,.3g} s, HFU {hfu:.0%}"
    ]
    if options.tokens:
        count = number(options.tokens)
        run = TrainingRun(
            model / tokens * count, plan.devices, hardware.flops, options.mfu, options.dollars_per_hour, options.watts
        )
        lines += [
            f"{count:,.0f} tokens: {run.flops:.3g} FLOPs, {run.days:,.4g} days, {run.device_hours:,.0f} device hours, "
            f"${run.dollars:,.0f} at ${options.dollars_per_hour:g} an hour, {run.kilowatt_hours:,.0f} kWh at "
            f"{options.watts:g} W"
        ]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The options, each with what it means."""
    p = argparse.ArgumentParser("python -m lib.costs", description=__doc__.split("\n")[0])
    p.add_argument("--model", required=True, help=f"one of {', '.join(MODELS)}, or the path of a config.json")
    p.add_argument("--devices", type=int, default=1)
    p.add_argument("--tensor", type=int, default=1, help="devices that split each layer")
    p.add_argument("--pipeline", type=int, default=1, help="stages of layers")
    p.add_argument("--zero", type=int, default=0, choices=range(4), help="stage of ZeRO over the replicas")
    p.add_argument("--sequence-parallel", action="store_true")
    p.add_argument("--recompute", choices=("selective", "full"))
    p.add_argument("--sequence", type=int, help="tokens of a text (default: 4096, or the longest that the model has)")
    p.add_argument("--batch", type=int, help="texts per step, over all replicas (default: one micro-batch per stage)")
    p.add_argument("--micro-batch", type=int, default=1, help="texts that a replica takes at once")
    p.add_argument("--chunks", type=int, default=1, help="pieces of the tokens for the loss")
    p.add_argument("--precision", choices=PRECISIONS, default="mixed")
    p.add_argument("--optimizer", choices=("sgd", "momentum", "adam", "adam-8bit", "adafactor"), default="adam")
    p.add_argument("--written-out-attention", action="store_true", help="scores are stored, as without FlashAttention")
    p.add_argument("--hardware", choices=PRESETS, default="H100")
    p.add_argument("--memory", help="of one device, such as 80GB or 40GiB (default: that of the hardware)")
    p.add_argument("--mfu", type=float, default=0.4, help="share of the peak that the model's FLOPs reach")
    p.add_argument("--tokens", help="of the whole training, such as 300B or 15.6T")
    p.add_argument("--dollars-per-hour", type=float, default=2.0, help="of one device")
    p.add_argument("--watts", type=float, default=700.0, help="of one device")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 2 with one sentence when what was asked cannot be."""
    options = parser().parse_args(arguments)
    try:
        shape = shape_of(options.model)
        print(answer(shape, plan_of(options, shape), options))
    except (ValueError, OSError) as error:
        print(f"python -m lib.costs: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
