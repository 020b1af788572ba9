"""Which way to train a model on these devices: three plans, why, and how far a rule of thumb is from them.

    python -m lib.costs.planner --model llama-3-70b --devices 256
    python -m lib.costs.planner --layers 48 --hidden 8192 --heads 64 --devices 64 --hardware A100 --memory 40GB

`--model` is the name of a published model, or the path of a config.json. The times are predictions of a model that was
calibrated on runs of A100s and H100s; other machines get the shares of the nearest of the two.
"""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace

from lib.costs.__main__ import shape_of, size_in_bytes
from lib.costs.compute import step_flops
from lib.costs.machine import Machine
from lib.costs.plans_that_fit import Proposal, best_grids, describe, judged, machine_named, propose, rule_of_thumb
from lib.costs.shapes import MODELS, ModelShape
from lib.costs.why_this_plan import reasons
from lib.devices.hardware import PRESETS, Link

WIDTH = 85
TOKENS = 4 * 2**20  # of a step, where no batch is given


def batch_for(devices: int, sequence: int) -> int:
    """Texts of a step: about four million tokens, and a multiple of the devices."""
    return max(1, TOKENS // sequence // devices) * devices


def by_rule(shape: ModelShape, devices: int, batch: int, sequence: int, machine: Machine) -> list[Proposal]:
    """The plans on the grid of the rule of thumb, fastest first; those that do not fit come last."""
    rule = rule_of_thumb(shape, devices, machine.hardware.per_node)
    found = [
        one
        for some in judged(shape, devices, batch, sequence, machine)
        for one in some
        if all(getattr(one.plan, name) == rule[name] for name in ("data", "tensor", "pipeline"))
    ]
    return sorted(found, key=lambda one: (one.room.total > machine.hardware.memory, one.seconds))


def row(name: str, one: Proposal, shape: ModelShape, machine: Machine) -> str:
    """A line of the table."""
    plan = one.plan
    flops = step_flops(shape, plan.global_batch, plan.sequence)
    mfu = flops / (one.seconds * plan.devices * machine.hardware.flops)
    grid = f"{plan.tensor:>3} {plan.pipeline:>3} {plan.data:>4}"
    size = f"{one.room.total / 1e9:>6.1f} GB"
    lacks = " does not fit" if one.room.total > machine.hardware.memory else ""
    rest = describe(plan).split(", ", 1)[1]
    return f"{name:<7}{grid} {one.seconds:>8.3f} s {mfu:>6.1%} {size}  {rest}{lacks}"


HEAD = f"{'':<7}{'TP':>3} {'PP':>3} {'DP':>4} {'a step':>10} {'MFU':>6} {'device':>9}"


def table(shape: ModelShape, devices: int, batch: int, sequence: int, machine: Machine) -> list[str]:
    """Three plans and the rule of thumb."""
    proposals = propose(shape, devices, batch, sequence, machine)
    lines = [HEAD]
    lines += [row(f"plan {i}", one, shape, machine) for i, one in enumerate(best_grids(proposals), 1)]
    ruled = by_rule(shape, devices, batch, sequence, machine)
    lines.append(row("rule", ruled[0], shape, machine) if ruled else "rule     its grid is not valid here")
    return lines


def answer(shape: ModelShape, devices: int, batch: int, sequence: int, machine: Machine) -> str:
    """The table, the reasons for the first plan, and where its time goes."""
    first = propose(shape, devices, batch, sequence, machine)[0]
    lines = table(shape, devices, batch, sequence, machine)
    lines += ["", "Why the first:"]
    for sentence in reasons(shape, first, batch, machine):
        lines += textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    parts = sorted(first.terms.items(), key=lambda part: -part[1])
    shares = [f"{name} {seconds / first.seconds:.0%}" for name, seconds in parts if seconds >= 0.005 * first.seconds]
    return "\n".join([*lines, "", *textwrap.wrap("Its time: " + ", ".join(shares), WIDTH)])


def machine_of(options: argparse.Namespace) -> Machine:
    """The machine that the options describe. Raises ValueError for what cannot be."""
    machine = machine_named(options.hardware)
    hardware = machine.hardware
    if options.memory:
        hardware = replace(hardware, memory=size_in_bytes(options.memory))
    for name in ("inside", "between"):
        if given := getattr(options, name):
            latency = getattr(hardware, name).latency
            hardware = replace(hardware, **{name: Link(latency, size_in_bytes(given))})
    return replace(machine, hardware=replace(hardware, per_node=options.per_node))


def parser() -> argparse.ArgumentParser:
    """The options, each with what it means."""
    p = argparse.ArgumentParser("python -m lib.costs.planner", description=__doc__.split("\n")[0])
    p.add_argument("--model", help=f"one of {', '.join(MODELS)}, or the path of a config.json")
    p.add_argument("--layers", type=int, help="sizes, in the place of --model: a GPT with these")
    p.add_argument("--hidden", type=int)
    p.add_argument("--heads", type=int)
    p.add_argument("--vocabulary", type=int, default=50257)
    p.add_argument("--devices", type=int, required=True)
    p.add_argument("--batch", type=int, help="texts of a step, over all devices (default: about 4 million tokens)")
    p.add_argument("--sequence", type=int, help="tokens of a text (default: 4096, or the longest that the model has)")
    p.add_argument("--hardware", default="H100", help=f"one of {', '.join(PRESETS)}")
    p.add_argument("--memory", help="of one device, such as 80GB or 40GiB")
    p.add_argument("--per-node", type=int, default=8, help="devices of a node")
    p.add_argument("--inside", help="bytes per second of a device's link inside the node, such as 370GB")
    p.add_argument("--between", help="bytes per second of a device's network card, such as 16GB")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 2 with one sentence when what was asked cannot be."""
    options = parser().parse_args(arguments)
    try:
        if options.model:
            shape = shape_of(options.model)
        elif None in (options.layers, options.hidden, options.heads):
            raise ValueError("give --model, or all of --layers, --hidden and --heads")
        else:
            shape = ModelShape.gpt(options.layers, options.hidden, options.heads, options.vocabulary, 2048)
        if options.devices < 1:
            raise ValueError(f"devices={options.devices} must be at least 1")
        sequence = options.sequence if options.sequence is not None else shape.learned_positions or 4096
        if sequence < 1:
            raise ValueError(f"sequence={sequence} must be at least 1")
        batch = options.batch if options.batch is not None else batch_for(options.devices, sequence)
        machine = machine_of(options)
        print(
            f"{options.model or 'a GPT'}: {shape.parameters / 1e9:,.1f}B parameters on {options.devices} x "
            f"{machine.hardware.name}, {batch} texts of {sequence} tokens in a step\n"
        )
        print(answer(shape, options.devices, batch, sequence, machine))
    except (ValueError, OSError) as error:
        print(f"python -m lib.costs.planner: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
