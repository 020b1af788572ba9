"""The exercises of the chapter "Several ways at once". Each function is a solution: read it after your own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from book.exercises.check.failed import kind
from book.exercises.check.planning import planning
from book.exercises.check.verdict import Fault
from lib.costs.grid import axis_seconds
from lib.devices.counts import counted
from lib.devices.hardware import H100, Hardware
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.grid.config import AXES, ParallelConfig

Order = tuple[str, ...]


# ---- 1: the ranks of a group ----


def line(sizes: dict[str, int], axis: str, rank: int, inside: bool = True, start: bool = True) -> list[int]:
    """The solution, and what is left of it with a mistake in it."""
    names = list(sizes)
    rest = names[names.index(axis) + 1 :] if inside else names[: names.index(axis)]
    stride = 1
    for name in rest:
        stride *= sizes[name]
    first = rank - rank // stride % sizes[axis] * stride if start else rank
    return [first + i * stride for i in range(sizes[axis])]


def own_size_too(sizes: dict[str, int], axis: str, rank: int) -> list[int]:
    stride = 1
    for name in list(sizes)[list(sizes).index(axis) :]:
        stride *= sizes[name]
    first = rank - rank // stride % sizes[axis] * stride
    return [first + i * stride for i in range(sizes[axis])]


def judge_group(given: Any, right: list[int], sizes: dict[str, int], axis: str, rank: int) -> None:
    """The same ranks in the same order."""
    grid = " x ".join(f"{name} {size}" for name, size in sizes.items())
    on = f"for rank {rank} along {axis}, in {grid}"
    if not isinstance(given, list | tuple):
        raise Fault(f"is wrong {on}.", f"expected a list of ranks, given {kind(given)}")
    if not all(isinstance(one, int) for one in given):
        raise Fault(f"is wrong {on}.", f"ranks are whole numbers, given {given!r}")
    if list(given) != right:
        raise Fault(f"is wrong {on}.", f"expected {right}, given {list(given)}")


@planning(
    oracle=line,
    judge=judge_group,
    cases=(
        ({"dp": 2, "pp": 2, "tp": 2}, "tp", 5),
        ({"dp": 2, "pp": 2, "tp": 2}, "pp", 5),
        ({"pp": 3, "dp": 4, "tp": 2}, "dp", 13),
        ({"pp": 8, "dp": 8, "cp": 1, "tp": 8}, "pp", 500),
    ),
    praise="is right for every grid and axis.",
    slips={
        "only along the last axis do neighbors have neighboring ranks: along the others they are farther apart.": (
            lambda sizes, axis, rank: [rank // sizes[axis] * sizes[axis] + i for i in range(sizes[axis])]
        ),
        "the step is the product of the sizes behind the axis, not before it: the last axis is the fastest.": (
            lambda sizes, axis, rank: line(sizes, axis, rank, inside=False)
        ),
        "the rank itself belongs to its group.": (
            lambda sizes, axis, rank: [other for other in line(sizes, axis, rank) if other != rank]
        ),
        "the step is the product of the sizes BEHIND the axis. Its own size is not among them.": own_size_too,
        "this begins at the rank itself. The group begins where the coordinate is 0.": (
            lambda sizes, axis, rank: line(sizes, axis, rank, start=False)
        ),
    },
    hints=(
        "Write down arange(8).view(2, 2, 2). By how much do ranks differ that are neighbors along the last axis? Along "
        "the one before?",
        "The step along an axis is the product of the sizes behind it. The coordinate is rank // step % size.",
        "first = rank - coordinate * step; the group is first + i * step for i in range(size).",
    ),
)
def group_of(sizes: dict[str, int], axis: str, rank: int) -> list[int]:
    """The ranks that differ from `rank` only along `axis`, in the order of that coordinate.

    `sizes` are the axes and their sizes, outermost first, such as {"dp": 2, "pp": 2, "tp": 2}. Without torch.
    """
    names = list(sizes)
    step = 1
    for name in names[names.index(axis) + 1 :]:
        step *= sizes[name]
    first = rank - rank // step % sizes[axis] * step
    return [first + i * step for i in range(sizes[axis])]


# ---- 2: all broken rules ----

RULES = ("devices", "heads", "layers", "micro-batches", "batch", "experts")
MODEL = GPTConfig(layers=24, hidden=1024, heads=16, vocabulary=50257, positions=1024)


def rules_by_lib(config: ParallelConfig, devices: int, batch: int) -> set[str]:
    """The rules that `ParallelConfig.problems` names."""
    told = {problem.split(":")[0] for problem in config.problems(devices, MODEL, batch=batch)}
    return told & set(RULES)


def one_by_one(config: ParallelConfig, devices: int, batch: int) -> set[str]:
    """The first alone."""
    return {rule for rule in RULES[:1] if rule in rules_by_lib(config, devices, batch)} or {
        rule for rule in [next((r for r in RULES if r in rules_by_lib(config, devices, batch)), None)] if rule
    }


def broken_but(config: ParallelConfig, devices: int, batch: int, **as_if: int) -> set[str]:
    """What is broken in a slightly different grid."""
    return rules_by_lib(replace(config, **as_if), devices, batch)


def judge_rules(given: Any, right: set[str], config: ParallelConfig, devices: int, batch: int) -> None:
    """The same set."""
    on = f"for {config} on {counted(devices, 'device')}, {counted(batch, 'text')} a step"
    if isinstance(given, str) or not isinstance(given, set | list | tuple | frozenset):
        raise Fault(f"is wrong {on}.", f"expected a set of names, given {kind(given)}")
    if strange := set(given) - set(RULES):
        raise Fault(f"is wrong {on}.", f"the names are {', '.join(RULES)}; given {', '.join(map(str, strange))}")
    if missed := right - set(given):
        raise Fault(f"is wrong {on}.", f"it misses: {', '.join(sorted(missed))}")
    if more := set(given) - right:
        raise Fault(f"is wrong {on}.", f"it names rules that hold: {', '.join(sorted(more))}")


RULE_CASES = (
    (ParallelConfig(dp=2, pp=2, tp=4, micro_batches=4), 16, 64),
    (ParallelConfig(dp=3, pp=5, tp=6, micro_batches=4), 64, 64),
    (ParallelConfig(dp=4, pp=2, tp=2, micro_batches=3, chunks=3), 16, 64),
    (ParallelConfig(dp=4, pp=4, tp=1, chunks=4, micro_batches=8, ep=2), 16, 32),
    (ParallelConfig(dp=2, pp=4, cp=2, tp=2, micro_batches=4), 16, 12),
    (ParallelConfig(dp=2, pp=2, tp=4, micro_batches=4), 32, 64),
)


@planning(
    oracle=rules_by_lib,
    judge=judge_rules,
    cases=RULE_CASES,
    praise="is right: every broken rule is found, and no other.",
    slips={
        "the product must BE the number of devices. A grid that divides it leaves devices without work.": (
            lambda config, devices, batch: (
                rules_by_lib(config, devices, batch) - {"devices"}
                | ({"devices"} if devices % (config.dp * config.pp * config.cp * config.tp) else set())
            )
        ),
        "this model has one expert, so ep must divide 1: whether it divides dp is another rule.": (
            lambda config, devices, batch: (
                rules_by_lib(config, devices, batch) - {"experts"} | ({"experts"} if config.dp % config.ep else set())
            )
        ),
        "dp x micro_batches must divide the batch: that each of the two does is not enough.": (
            lambda config, devices, batch: (
                rules_by_lib(config, devices, batch) - {"batch"}
                | ({"batch"} if batch % config.dp or batch % config.micro_batches else set())
            )
        ),
        "only interleaving, with more than one chunk, needs rounds of pp micro-batches.": (
            lambda config, devices, batch: (
                rules_by_lib(config, devices, batch)
                | ({"micro-batches"} if config.micro_batches % config.pp else set())
            )
        ),
        "it stops at the first broken rule. Who mends that one starts again, and meets the next.": one_by_one,
        "the layers are cut into pp x chunks stages, not into pp.": (
            lambda config, devices, batch: broken_but(config, devices, batch, chunks=1)
        ),
        "a replica cuts its texts into micro-batches once more: dp x micro_batches must divide the batch.": (
            lambda config, devices, batch: rules_by_lib(config, devices, batch // config.dp * config.dp * 12)
        ),
        "context parallelism takes devices, too: dp x pp x cp x tp.": (
            lambda config, devices, batch: rules_by_lib(config, devices * config.cp, batch)
        ),
    },
    hints=(
        "One rule for each name. Which number must divide which? Collect what is broken in a set, and return it at the "
        "end.",
        "devices: dp x pp x cp x tp; heads: tp; layers: pp x chunks; micro-batches: with chunks > 1, pp; batch: "
        "dp x micro_batches.",
        "experts: this model has one, so ep must divide 1. Now each rule is `if b % a: broken.add(name)`.",
    ),
)
def broken_rules(config: ParallelConfig, devices: int, batch: int) -> set[str]:
    """The names of all broken rules for a GPT of 24 layers and 16 heads, without experts; an empty set if it is valid.

    The names: devices, heads, layers (equal stages), micro-batches (interleaving wants rounds of pp), batch (equal
    micro-batches), experts. The config has dp, pp, cp, tp, ep, micro_batches and chunks. `batch` texts make a step.
    """
    broken = set()
    if config.dp * config.pp * config.cp * config.tp != devices:
        broken.add("devices")
    if 16 % config.tp:
        broken.add("heads")
    if 24 % (config.pp * config.chunks):
        broken.add("layers")
    if config.chunks > 1 and config.micro_batches % config.pp:
        broken.add("micro-batches")
    if batch % (config.dp * config.micro_batches):
        broken.add("batch")
    if config.ep > 1:
        broken.add("experts")
    return broken


# ---- 3: the order of the axes ----

NODES_OF_4 = replace(H100, name="H100, nodes of 4", per_node=4)
USUAL = (ParallelConfig(dp=4, pp=2, tp=8, micro_batches=8), GPTConfig(32, 4096, 32, positions=2048), 128, 2048, H100)
LONG_TEXTS = (ParallelConfig(dp=2, cp=4, tp=2), GPTConfig(8, 2048, 16, positions=32768), 2, 32768, NODES_OF_4)
FEW_TOKENS = (
    ParallelConfig(dp=8, pp=4, tp=2, micro_batches=4),
    GPTConfig(32, 8192, 32, positions=512),
    32,
    512,
    H100,
)


def order_seconds(
    order: Sequence[str], config: ParallelConfig, model: GPTConfig, batch: int, length: int, hardware: Hardware
) -> float:
    """The seconds of all communication of a step, if the axes stand in this order, outermost first."""
    return sum(axis_seconds(config, model, batch, length, hardware, order).values())


def best_order(*case: Any) -> Order:
    """By trying all 24."""
    return min(itertools.permutations(AXES), key=lambda order: order_seconds(order, *case))


def judge_order(given: Any, right: Order, *case: Any) -> None:
    """By the clock: any order that takes no longer is as good."""
    config = case[0]
    on = f"for {config}, texts of {case[3]} tokens, nodes of {case[4].per_node}"
    if not isinstance(given, list | tuple) or sorted(map(str, given)) != sorted(AXES):
        raise Fault(f"is wrong {on}.", f"expected pp, dp, cp, tp in some order, outermost first; given {given!r}")
    took, least = order_seconds(given, *case), order_seconds(right, *case)
    if took > least * (1 + 1e-9):
        each = axis_seconds(*case, order=given)
        slowest = max(each, key=lambda axis: each[axis])
        raise Fault(
            f"can be faster {on}.",
            f"{' - '.join(given)} talks for {took * 1e3:.1f} ms a step; possible is {least * 1e3:.1f} ms",
            f"the most goes to {slowest}: {each[slowest] * 1e3:.1f} ms",
        )


@planning(
    oracle=best_order,
    judge=judge_order,
    cases=(USUAL, LONG_TEXTS, FEW_TOKENS),
    praise="is right: no order of the axes talks for a shorter time on these three machines. (Did you only sort by "
    "bytes? It suffices here. With an axis that is as large as a node, sizes count too.)",
    slips={
        "tensor parallelism stands outermost: its all-reduces, several for each layer, cross the network.": (
            lambda *case: ("tp", "cp", "dp", "pp")
        ),
        "this is Megatron's order whatever the numbers. With cp above tp, or few tokens, another axis sends more.": (
            lambda *case: AXES
        ),
    },
    hints=(
        "The innermost axes share a node. Which axes have to, and how many fit? `axis_traffic` says what each sends.",
        "The axis with the most bytes usually goes inside. But sizes count too: an axis of 8 fills a node of 8 alone, "
        "and one that is left outside may have one network card for each of its members.",
        "There are only 24 orders: itertools.permutations(('pp', 'dp', 'cp', 'tp')), and order_seconds for each.",
    ),
)
def axis_order(config: ParallelConfig, model: GPTConfig, batch: int, length: int, hardware: Hardware) -> Order:
    """pp, dp, cp and tp in the order in which a step communicates for the shortest time, outermost first.

    Judged by `order_seconds(order, config, model, batch, length, hardware)`: as if nothing hides any communication.
    """
    orders = itertools.permutations(("pp", "dp", "cp", "tp"))
    return min(orders, key=lambda order: order_seconds(order, config, model, batch, length, hardware))


# ---- 4: the same training on another grid ----


def same_batch(batch: int, texts: int, dp: int) -> int | str:
    """m = batch / (dp x texts)."""
    return batch // (dp * texts) if batch % (dp * texts) == 0 else "impossible"


def judge_micro(given: Any, right: int | str, batch: int, texts: int, dp: int) -> None:
    """The number, or "impossible"."""
    if given != right or isinstance(given, bool):
        found = [f"it gives {given!r}"]
        if isinstance(given, int):
            found[0] += f": then a step has {dp} x {given} x {texts} = {dp * given * texts} texts, not {batch}"
        if right == "impossible":
            found.append(f'{dp} x {texts} does not divide {batch}, so the answer is the word "impossible"')
        elif isinstance(given, str):
            found.append(f"{dp} x {texts} divides {batch}")
        raise Fault(f"is wrong for a batch of {batch}, {texts} texts at a time, dp={dp}.", *found)


@planning(
    oracle=same_batch,
    judge=judge_micro,
    cases=((256, 4, 8), (256, 4, 16), (96, 2, 3), (256, 4, 24), (8, 4, 4)),
    praise="is right: the step has as many texts on every grid, so its losses may be compared.",
    slips={
        "all replicas together have these texts: each has a dp-th of them.": lambda batch, texts, dp: batch // texts,
        "this is the number of texts of a replica. A micro-batch has several of them.": (
            lambda batch, texts, dp: batch // dp
        ),
        "rounded down, some texts of the step are left out, or none is left: say that it is impossible.": (
            lambda batch, texts, dp: batch // (dp * texts)
        ),
    },
    hints=(
        "What do the numbers of replicas, of micro-batches and of texts in each multiply to?",
        "batch = dp x micro_batches x texts. Solve for micro_batches.",
        'If dp x texts does not divide the batch, return "impossible".',
    ),
)
def micro_batches(batch: int, texts: int, dp: int) -> int | str:
    """How many micro-batches of `texts` texts each replica takes, so that a step has `batch` texts on all dp replicas.

    Return the number, or "impossible" where equal micro-batches do not come out.
    """
    if batch % (dp * texts):
        return "impossible"
    return batch // (dp * texts)
