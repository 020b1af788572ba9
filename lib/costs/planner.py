"""Which way to train a model on these devices: three plans, why, and how far a rule of thumb is from them.

    python -m lib.costs.planner --model llama-3-70b --devices 256
    python -m lib.costs.planner --layers 48 --hidden 8192 --heads 64 --devices 64 --hardware A100 --memory 40GB

`--model` is the name of a published model, or the path of a config.json. The times are predictions of a model that was
calibrated on runs of A100s and H100s; other machines get the shares of the nearest of the two.
"""

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import replace

from lib.command import run_command
from lib.costs.asked import length_of, make_parser, read_bytes, reply, shape_of
from lib.costs.compute import step_flops
from lib.costs.machine import Machine
from lib.costs.money import share_of_peak
from lib.costs.plans_that_fit import Proposal, best_grids, describe, judged, machine_named, propose, rule_of_thumb
from lib.costs.shapes import ModelShape
from lib.costs.why_this_plan import reasons
from lib.devices.aligned import aligned
from lib.devices.counts import check_counts, counted
from lib.devices.hardware import Link

COMMAND = "lib.costs.planner"
WIDTH = 79  # of a line, in characters
HEAD = ["", "TP", "PP", "DP", "a step", "MFU", "device"]
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


def row(name: str, one: Proposal, shape: ModelShape, machine: Machine) -> list[str]:
    """A row of the table: what stands under `HEAD`, and the choices."""
    plan, hardware = one.plan, machine.hardware
    mfu = share_of_peak(step_flops(shape, plan.global_batch, plan.sequence), one.seconds, plan.devices, hardware.flops)
    _, *choices = describe(plan).split(", ")
    choices += ["does not fit"] * (one.room.total > hardware.memory)
    return [
        name, str(plan.tensor), str(plan.pipeline), str(plan.data), f"{_three_digits(one.seconds)} s", f"{mfu:.0%}",
        f"{one.room.total / 1e9:.1f} GB", ", ".join(choices),
    ]  # fmt: skip


def _three_digits(x: float) -> str:  # more are not known
    return f"{x:,.0f}" if x >= 100 else f"{x:#.3g}"


def table(shape: ModelShape, devices: int, batch: int, sequence: int, machine: Machine) -> list[str]:
    """Three plans and the rule of thumb. Where the choices of one are long, they go on below."""
    proposals = propose(shape, devices, batch, sequence, machine)
    rows = [row(f"plan {i}", one, shape, machine) for i, one in enumerate(best_grids(proposals), 1)]
    ruled = by_rule(shape, devices, batch, sequence, machine)
    rows.append(row("rule", ruled[0], shape, machine) if ruled else ["rule", *[""] * 6, "its grid is not valid"])
    lines = aligned([HEAD, *(row[:-1] for row in rows)], left=(0,))
    left = max(map(len, lines)) + 2
    told = lines[:1]
    for line, (*_, choices) in zip(lines[1:], rows, strict=True):
        first, *more = _cut(choices, WIDTH - left)
        told += [f"{line:{left}}{first}", *(" " * left + rest for rest in more)]
    return told


def _cut(choices: str, width: int) -> list[str]:
    """In lines, cut behind commas."""
    whole = choices.replace(" ", "\N{NO-BREAK SPACE}").replace(",\N{NO-BREAK SPACE}", ", ")
    lines = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


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
    if options.memory is not None:
        hardware = replace(hardware, memory=read_bytes(options.memory))
    for name in ("inside", "between"):
        if (given := getattr(options, name)) is not None:
            latency = getattr(hardware, name).latency
            hardware = replace(hardware, **{name: Link(latency, read_bytes(given))})
    return replace(machine, hardware=replace(hardware, per_node=options.per_node))


def parser() -> argparse.ArgumentParser:
    """The options, each with what it means."""
    p = make_parser(COMMAND, __doc__)
    p.add_argument("--layers", type=int, help="sizes, in the place of --model: a GPT with these")
    p.add_argument("--hidden", type=int)
    p.add_argument("--heads", type=int)
    p.add_argument("--vocabulary", type=int, help="(50257)")
    p.add_argument("--batch", type=int, help="texts of a step, over all devices (about 4 million tokens)")
    p.add_argument("--per-node", type=int, default=8, help="devices of a node (%(default)s)")
    p.add_argument("--inside", help="bytes per second of a device's link inside the node, such as 370GB")
    p.add_argument("--between", help="bytes per second of a device's network card, such as 16GB")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 2 with one sentence when what was asked cannot be."""
    options = parser().parse_args(arguments)

    def say() -> str:
        names = ("layers", "hidden", "heads", "vocabulary")
        sizes = {name: size for name in names if (size := getattr(options, name)) is not None}
        if options.model is not None and sizes:
            raise ValueError(f"--model has sizes of its own: leave out --{', --'.join(sizes)}")
        if options.model is not None:
            shape = shape_of(options.model)
        elif not sizes.keys() >= {"layers", "hidden", "heads"}:
            raise ValueError("give --model, or all of --layers, --hidden and --heads")
        else:
            shape = ModelShape.gpt(**sizes, positions=options.sequence or 2048)
        sequence = length_of(options, shape)
        check_counts("the planner", {"devices": options.devices, "sequence": sequence})
        batch = options.batch if options.batch is not None else batch_for(options.devices, sequence)
        machine = machine_of(options)
        head = (
            f"{options.model or 'a GPT'}: {shape.parameters / 1e9:,.1f}B parameters on {options.devices} x "
            f"{machine.hardware.name}, {counted(batch, 'text')} of {counted(sequence, 'token')} in a step"
        )
        head = textwrap.fill(head, WIDTH, break_on_hyphens=False)
        return f"{head}\n\n{answer(shape, options.devices, batch, sequence, machine)}"

    return reply(COMMAND, say)


if __name__ == "__main__":
    run_command(main)
