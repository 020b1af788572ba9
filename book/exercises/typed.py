"""The exercises of the chapter "Which numbers are these?". Each function is a solution: read it after your own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from book.exercises.check.failed import kind as told_kind
from book.exercises.check.planning import planning
from book.exercises.check.verdict import Fault
from lib.devices import Cluster, Group
from lib.parallel.sharding import conjugates
from lib.parallel.sharding.placement import Shard
from lib.parallel.typed.kinds import ENTERED, SUMMAND, WHOLE, Operand, PlacementError, cut_along
from lib.parallel.typed.mode import Typed
from lib.parallel.typed.products import product

GIVEN = {  # what the lines use: the shape on each of two devices, and how it is cut
    "x": ((2, 4, 8), None), "own": ((2, 2, 8), 1), "n": ((8,), None), "a": ((8, 8), 1), "b": ((8, 8), 0),
    "bias": ((8,), None), "own_bias": ((8,), 0),
}  # fmt: skip

BLOCKS = {
    "tensor": (
        "h = F.layer_norm(x, (8,), n)",
        "e = copy_to(h, group)",
        "y = F.gelu(e @ a)",
        "p = y @ b",
        "s = reduce_from(p, group)",
        "z = x + s + bias",
        "loss = z.square().mean()",
    ),
    "sequence": (
        "m = copy_to(n, group)",
        "h = F.layer_norm(own, (8,), m)",
        "e = all_gather(h, group, 1)",
        "y = F.gelu(e @ a)",
        "p = y @ b",
        "s = reduce_scatter(p, group, 1)",
        "z = own + s",
        "loss = reduce_from(z.square().sum(), group)",
    ),
}

PROGRAMS = (  # each runs without types: the shapes fit
    ("h = F.layer_norm(x, (8,), n)", "y = F.gelu(h @ a)", "z = reduce_from(y @ b, group)"),
    ("e = copy_to(x, group)", "y = F.gelu(e @ a)", "p = y @ b + bias", "z = reduce_from(p, group)"),
    ("e = copy_to(x, group)", "y = e @ a + own_bias", "p = y @ b", "q = F.gelu(p)", "z = reduce_from(q, group)"),
    ("e = copy_to(x, group)", "p = F.gelu(e @ a) @ b", "s = reduce_from(p, group)", "z = reduce_from(x + s, group)"),
    ("e = copy_to(x, group)", "y = F.relu(e @ a)", "w = y.softmax(-1)", "z = reduce_from(w @ b, group)"),
    ("h = F.layer_norm(own, (8,), n)", "e = all_gather(h, group, 1)", "z = reduce_scatter(e @ a @ b, group, 1)"),
    ("e = gather_from(own, group, 1)", "s = e.square()", "y = F.gelu(s @ a)", "z = reduce_scatter(y @ b, group, 1)"),
    ("e = all_gather(own, group, 1)", "p = F.gelu(e @ a) @ b", "s = reduce_scatter(p, group, 1)",
     "y = F.gelu((own + s) @ a)", "z = reduce_scatter(y @ b, group, 1)"),
    ("e = copy_to(x, group)", "f = copy_to(2 * e, group)", "y = F.gelu(f @ a)", "z = reduce_from(y @ b, group)"),
    ("m = own.mean()", "s = m / 2", "t = reduce_from(s, group)", "v = own.mean()", "loss = reduce_from(v, group) + t"),
)  # fmt: skip


def line_by_line(lines: tuple[str, ...], group: Group) -> Iterator[tuple[int, str, str]]:
    """(number, name, kind) of each line on a typed device without data; the kind is "refused" where types refuse."""
    names: dict[str, Any] = {"F": F, "group": group, **vars(conjugates)}
    with Typed(group=group) as types:
        for name, (shape, dim) in GIVEN.items():
            x = torch.empty(shape, device="meta", requires_grad=True)
            names[name] = types.give(x, **({} if dim is None else {"group": Shard(dim)}))
        for number, line in enumerate(lines, 1):
            name = line.partition(" = ")[0]
            try:
                exec(line, names)
            except PlacementError:
                yield number, name, "refused"
                return
            yield number, name, types.short(names[name])


@cache
def typed_run(lines: tuple[str, ...]) -> tuple[tuple[int, str, str], ...]:
    """What two devices find."""
    return Cluster(2).run(lambda group: tuple(line_by_line(lines, group)))[0]


def listed(lines: tuple[str, ...]) -> str:
    """The lines with their numbers."""
    return "\n".join(f"  {number}  {line}" for number, line in enumerate(lines, 1))


def right_kinds(block: str) -> dict[str, str]:
    return {name: found for _, name, found in typed_run(BLOCKS[block])}


def tidy(kind: Any) -> str:
    """As the book writes it: "r | p" is "R|P"."""
    return re.sub(r"\s", "", str(kind)).upper()


def judge_kinds(given: Any, right: dict[str, str], block: str) -> None:
    """Line by line; the first that is wrong is told, and not what is right."""
    if not isinstance(given, dict) or given.keys() != right.keys():
        raise Fault("is wrong.", f"expected a dict with the keys {list(right)}, given {told_kind(given)}")
    if ... in given.values():
        raise NotImplementedError
    for number, (name, line) in enumerate(zip(right, BLOCKS[block], strict=True), 1):
        mine = tidy(given[name])
        if mine == right[name]:
            continue
        sentence = f"is wrong in line {number} of {block!r}."
        if not re.fullmatch(r"(R|P|S\d)\|(R|P|S\d)", mine):
            form = 'Write value and gradient, as "R|P" or "S1|S1", and count dims from 0'
            raise Fault(sentence, f"{line}: {given[name]!r} is no kind. {form}")
        pairs = zip(("value", "gradient"), mine.split("|"), right[name].split("|"), strict=True)
        half, wrong = next((half, wrong) for half, wrong, known in pairs if wrong != known)
        raise Fault(sentence, f"{line}: the {half} is not {wrong!r}")


def with_kinds(block: str, **instead: str) -> dict[str, str]:
    """The right kinds, with another one for all `entered` or all `summand`."""
    wrong = {{"entered": "R|P", "summand": "P|R"}[which]: kind for which, kind in instead.items()}
    return {name: wrong.get(found, found) for name, found in right_kinds(block).items()}


def without_gradients(block: str) -> dict[str, str]:
    return with_kinds(block, entered="R|R", summand="P|P")


@planning(
    oracle=right_kinds,
    judge=judge_kinds,
    cases=(("tensor",), ("sequence",)),
    praise="is right for every line of both blocks, values and gradients.",
    slips={
        "the gradient is not placed as the value: that of a summand is whole, that of what has entered is a partial "
        "sum.": without_gradients,
        "a summand is a part of the value alone: each summand gets the whole gradient of the sum.": lambda block: (
            with_kinds(block, summand="P|P")
        ),
        "each device does another part of the work with what has entered: its gradient is a partial sum.": (
            lambda block: with_kinds(block, entered="R|R")
        ),
    },
    hints=(
        "Go line by line. What is cut, what is whole, what is not yet summed? The gradient is told by the kind: there "
        "are only four.",
        "A product over a dim that both sides are cut along is P|R. What f or an all_gather makes is R|P.",
        'The first block: h "R|R", e "R|P", y "S2|S2" (columns of the last of three dims), p "P|R", then whole again.',
    ),
)
def block_kinds(block: str) -> dict[str, str]:
    """The kind of every line of `BLOCKS[block]`, in the short form: {"h": "R|R", ...}.

    x, n, bias are whole, own is Shard(1), a is Shard(1), b is Shard(0), each with its gradient.
    """
    if block == "tensor":
        return {"h": "R|R", "e": "R|P", "y": "S2|S2", "p": "P|R", "s": "R|R", "z": "R|R", "loss": "R|R"}
    first = {"m": "R|P", "h": "S1|S1", "e": "R|P", "y": "S2|S2"}
    return first | {"p": "P|R", "s": "S1|S1", "z": "S1|S1", "loss": "R|R"}


def right_lines() -> list[int]:
    return [typed_run(lines)[-1][0] for lines in PROGRAMS]


def judge_lines(given: Any, right: list[int]) -> None:
    """Program by program."""
    if not isinstance(given, list | tuple) or len(given) != len(right):
        raise Fault("is wrong.", f"expected a list of {len(right)} line numbers, given {told_kind(given)}")
    if any(mine is ... for mine in given):
        raise NotImplementedError
    if any(isinstance(mine, str) for mine in given):
        raise Fault("is wrong.", "expected line numbers, given text: write 2, without quotes")
    wrong = [i for i, (mine, line) in enumerate(zip(given, right, strict=True), 1) if mine != line]
    if wrong:
        raise Fault(
            f"is right for {len(right) - len(wrong)} of {len(right)} programs.",
            f"program {wrong[0]}: not line {given[wrong[0] - 1]}. The wrong line is the first that no rule fits",
        )


@planning(
    oracle=right_lines,
    judge=judge_lines,
    cases=((),),
    praise="finds the wrong line of all ten.",
    slips={
        "these are the last lines; a mistake is refused where it is made.": lambda: [len(p) for p in PROGRAMS],
        "these are right, counted from 0. The first line is line 1.": lambda: [line - 1 for line in right_lines()],
    },
    hints=(
        "Write the kind beside each line, as in the first exercise. Stop where no rule gives one.",
        "Four are about the gradient alone: their values are right on every device.",
        "Programs 1, 6 and 7 lack an f. Program 9 has two. A mean of means is not yet a sum (program 10).",
    ),
)
def wrong_lines() -> list[int]:
    """For each of the ten `PROGRAMS`, the number of the line that is wrong, counted from 1."""
    return [2, 3, 4, 4, 3, 1, 3, 4, 2, 5]


KINDS = {"R|R": WHOLE, "R|P": ENTERED, "P|R": SUMMAND, "S0|S0": cut_along(0)}


def right_outer(a: str, b: str) -> str:
    """torch.outer(a, b) is a as a column times b as a row."""
    column = Operand(KINDS[a], (4, 1), 2)
    row = Operand(cut_along(1) if b == "S0|S0" else KINDS[b], (1, 4), 2)
    try:
        return product(column, row, 1, 0, 2).short
    except PlacementError:
        return "refused"


def judge_outer(given: Any, right: str, a: str, b: str) -> None:
    """One of the kinds, or "refused"."""
    if tidy(given) != right.upper():
        told = told_kind(given) if not isinstance(given, str) else repr(given)
        raise Fault(f"is wrong for a {a} and b {b}.", f"given {told}")


def outer_without_f(a: str, b: str) -> str:
    return right_outer(*(kind.replace("R|R", "R|P") if (a, b) != ("R|R", "R|R") else kind for kind in (a, b)))


def outer_of_both(a: str, b: str, kind: str) -> str:
    """Right, but that R|R beside R|P gives `kind`."""
    return kind if {a, b} == {"R|R", "R|P"} else right_outer(a, b)


@planning(
    oracle=right_outer,
    judge=judge_outer,
    cases=tuple((a, b) for a in KINDS for b in KINDS),
    praise="is right for all 16 pairs of kinds.",
    slips={
        "a whole tensor beside one that is cut or a summand gets a gradient that nobody sums: it must have entered.": (
            outer_without_f
        ),
        "R|R beside R|P is not R|P: the gradient of the whole one would be a partial sum that nobody sums.": (
            lambda a, b: outer_of_both(a, b, "R|P")
        ),
        "R|R beside R|P is not R|R: f would sum the gradient of the entered one, which is whole already.": (
            lambda a, b: outer_of_both(a, b, "R|R")
        ),
        "outer is linear in each of the two, so a partial sum may pass, beside one that has entered.": lambda a, b: (
            "refused" if "P|R" in (a, b) else right_outer(a, b)
        ),
        "b lies along dim 1 of the result: cut, it is S1|S1 there.": lambda a, b: right_outer(a, b).replace("S1", "S0"),
    },
    hints=(
        "result[i, j] = a[i] * b[j]. Which pieces of it can a device make of its own piece of a, and a whole b? Whose "
        "gradient is then a partial sum?",
        "Two of one kind: R|R stays, R|P stays, two partial sums or two pieces are refused. Else, one of the two must "
        "be R|P; R|R beside it is refused.",
        "With b R|P: a S0|S0 gives S0|S0, and P|R gives P|R. With a R|P: b S0|S0 gives S1|S1.",
    ),
)
def outer(a: str, b: str) -> str:
    """The kind of torch.outer(a, b), result[i, j] = a[i] * b[j], or "refused"; a and b are R|R, R|P, P|R or S0|S0."""
    if a == b and a.startswith("R"):
        return a
    if b == "R|P" and a != "R|R":
        return a
    if a == "R|P" and b != "R|R":
        return b.replace("S0", "S1")
    return "refused"
