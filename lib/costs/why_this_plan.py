"""Why a plan, in words: each choice beside its neighbors, with what they would cost or what they lack.

Nothing here is written beforehand. For every choice the fastest plan with the next smaller and the next larger value is
looked up among all that were tried. The reason is the term of its time that grew most, or the bytes that it lacks.
"""

from collections.abc import Sequence

from lib.costs.machine import Machine
from lib.costs.plans_that_fit import Proposal, describe, judged
from lib.costs.shapes import ModelShape
from lib.devices.counts import counted

CHOICES = {
    "tensor": "TP {}",
    "pipeline": "PP {}",
    "micro_batch": "micro-batch {}",
    "interleaved": "{stages} on each device",
    "zero": "ZeRO {}",
}
BECAUSE = {
    "products": "a device computes more",
    "elementwise": "more is read and written outside of the products",
    "recomputation": "layers are computed twice",
    "tensor parallel": "the tensor groups send more",
    "accumulation": "there are more micro-batches, and each adds its gradients to the sum",
    "host": "a layer is shorter than its kernels take to issue",
    "head": "a device has more of the head to compute",
    "bubble": "the pipeline stands still for longer",
    "pipeline sends": "the stages send more",
    "data parallel": "more gradients travel",
    "optimizer": "each device updates more parameters",
}


def reasons(shape: ModelShape, chosen: Proposal, batch: int, machine: Machine) -> list[str]:
    """One sentence for each choice that had a neighbor."""
    every = [one for some in judged(shape, chosen.plan.devices, batch, chosen.plan.sequence, machine) for one in some]
    told = []
    for field, words in CHOICES.items():
        mine = getattr(chosen.plan, field)
        values = sorted({getattr(one.plan, field) for one in every})
        near = [v for v in values if v < mine][-1:] + [v for v in values if v > mine][:1]
        others = [_beside(chosen, _of(every, field, value, chosen), _named(words, value), machine) for value in near]
        others = [sentence for sentence in others if sentence]
        if others:
            told.append(f"{_named(words, mine)}: " + "; ".join(others) + ".")
    with_, without = (_of(every, "recompute", how, chosen) for how in ("full", None))
    if chosen.plan.recompute is None:
        told.append("Nothing recomputed: " + (_beside(chosen, with_, "all recomputed", machine) or "it fits") + ".")
    else:
        told.append(
            "All recomputed: " + (_beside(chosen, without, "nothing recomputed", machine) or "it is faster") + "."
        )
    return told


def _named(words: str, value: int) -> str:
    """ "4 stages on each device", "1 stage on each device"."""
    return words.format(value, stages=counted(value, "stage"))


def _of(every: Sequence[Proposal], field: str, value: object, chosen: Proposal) -> list[Proposal]:
    """The plans with this value; those on the chosen grid, where the grid can stay."""
    same = [one for one in every if getattr(one.plan, field) == value]
    if field in ("tensor", "pipeline"):
        return same
    return [one for one in same if one.grid == chosen.grid]


def _beside(chosen: Proposal, others: Sequence[Proposal], name: str, machine: Machine) -> str | None:
    """What is wrong with the best of `others`."""
    if not others:
        return None
    memory = machine.hardware.memory
    fitting = [one for one in others if one.room.total <= memory]
    many = "stages" in name  # "2 stages take", "TP 2 takes"
    if not fitting:
        least = min(one.room.total for one in others)
        return f"{name} {'do' if many else 'does'} not fit, {(least - memory) / 1e9:,.1f} GB are short"
    best = min(fitting, key=lambda one: one.seconds)
    slower = best.seconds / chosen.seconds - 1
    if slower < 0.0005:
        return f"{name} {'are' if many else 'is'} as fast"
    grown = {term: best.terms.get(term, 0.0) - chosen.terms.get(term, 0.0) for term in {*best.terms, *chosen.terms}}
    term = max(sorted(grown), key=grown.get)
    why = BECAUSE[term]
    if term == "tensor parallel" and best.plan.tensor > machine.hardware.per_node >= chosen.plan.tensor:
        why = "the tensor groups leave the node"
    if term == "head" and best.plan.pipeline > 1:
        why = "the last stage has the head beside its layers, and all others wait for it"
    changed = [
        word
        for word in describe(best.plan).split(", ")[1:]
        if word not in describe(chosen.plan) + name and not word.startswith(name.removesuffix(" on each device"))
    ]
    at_best = f" at best (with {', '.join(changed)})" if changed else ""
    return f"{name} {'take' if many else 'takes'} {slower:.1%} longer{at_best}: {why} (+{grown[term]:.3g} s)"
