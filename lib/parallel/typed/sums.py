"""Sums, products and quotients of partial sums, which are linear: what may stand before the sum over the devices.

A number that divides is looked at. The mean of P equal means is their sum / P, so a mean divided by P is a summand of
it. A P-th of what is whole is a summand too: one of P equal ones.
"""

from dataclasses import replace
from itertools import combinations
from math import prod
from numbers import Real

import torch

from lib.parallel.sharding.placement import Partial, Replicate
from lib.parallel.typed.elementwise import must_have_entered, no_partial, operands_in, sum_or_mean, together
from lib.parallel.typed.kinds import CONSTANT, SUMMAND, WHOLE, Kind, Operand, Own, PlacementError, written


def added(*args, **kwargs) -> Kind:
    """a + b, a - b: of partial sums, the sum of the sums."""
    operands = operands_in(args, kwargs)
    if not any(x.partial for x in operands):
        kind = together("a sum", operands)
        shares = all(x.kind.share for x in operands) and not any(_numbers_in(args, kwargs))
        return replace(kind, share=shares)
    for x in operands:
        if not x.partial and not is_summand(x):
            raise PlacementError(_why_not_added(x))
    operands = [x for x in operands if x.partial]
    if any(_numbers_in(args, kwargs)):
        raise PlacementError("a number is added before the sum over the devices, and would count once on each of them")
    sum_or_mean("added", *operands)
    if len({x.value for x in operands}) > 1:
        raise PlacementError(
            f"{' is added to '.join(written(x.value) for x in operands)}: bring both to one kind first"
        )
    return operands[0].kind


def is_summand(x: Operand) -> bool:
    """Whether this is one of P equal summands: a P-th of what is whole, or a constant. Its gradient, a P-th of the
    sum's on each device, adds up to the whole one if it has entered before."""
    return x.kind.share and x.kind != WHOLE


def _why_not_added(x: Operand) -> str:
    if x.kind.share:
        return (
            f"1/{x.group_size} of a whole tensor, such as a bias, is added on each device before the sum. The sum is "
            f"right, but each copy would get 1/{x.group_size} of its gradient, and nobody sums them: let it enter "
            "first, by copy_to(x, group), or reduce the partial sum first (reduce_from), then add the whole"
        )
    what = "a whole tensor, such as a bias," if isinstance(x.value, Replicate) else f"a {written(x.value)}"
    return (
        f"{what} is added before the sum over the devices, and would count once on each of the {x.group_size}: "
        "reduce the partial sum first (reduce_from), then add"
    )


def counts_devices(number: object, x: Operand) -> bool:
    """Whether `number` can only be how many devices the group has, alone or with the groups of some of its `peers`."""
    if isinstance(number, bool) or not isinstance(number, Real):
        return False
    sizes = (x.group_size, *x.peers)
    every = [some for n in range(1, len(sizes) + 1) for some in combinations(range(len(sizes)), n)]
    found = [some for some in every if abs(prod(sizes[i] for i in some) - number) < 1e-9]
    return len(found) == 1 and 0 in found[0]


def scaled(*args, **kwargs) -> Kind:
    """a * b: linear in each, so one of them may be a partial sum."""
    operands = operands_in(args, kwargs)
    if {x.value for x in operands} == {Own("rows"), Own("mask")}:
        return SUMMAND  # zeros for the tokens of others: only one device has each row
    partial = [x for x in operands if x.partial]
    if len(operands) == 1 and (number := next(iter(_numbers_in(args, kwargs)), 0)):
        return divided(operands[0], 1 / number)
    if not partial:
        return together("a product", operands)
    if len(partial) > 1:
        raise PlacementError("a product of partial sums is not the sum of the products: reduce one of them first")
    for x in operands:
        if not x.partial:
            if x.dim is not None:
                raise PlacementError(f"a partial sum times a {written(x.value)}: reduce the sum first")
            must_have_entered(x, "a partial sum")
    sum_or_mean("multiplied", partial[0])
    return partial[0].kind


def divided(a, b, **kwargs) -> Kind:
    """a / b: linear in a. The mean of P equal means is their sum / P, so a mean divided by P is a summand of it."""
    if not isinstance(a, Operand) or not a.partial:
        no_partial("1 / x", *operands_in((b,), {}))
        kind = together("a quotient", operands_in((a, b), {}))
        whole = isinstance(a, Operand) and isinstance(a.value, Replicate)
        return replace(kind, share=whole and counts_devices(b, a))
    if isinstance(b, Operand):
        if b.partial:
            raise PlacementError("a quotient of partial sums is not the sum of the quotients: reduce both first")
        return scaled(a, b)
    if a.value == Partial("mean") and counts_devices(b, a):
        return SUMMAND
    sum_or_mean("divided", a)
    return a.kind


def _numbers_in(args: tuple, kwargs: dict) -> list[Real]:
    """Those among the operands, NumPy's too. A factor that is called `alpha` is none: it multiplies."""
    return [x for x in (*args, kwargs.get("other")) if isinstance(x, Real)]


def copied(x: Operand, *args, **kwargs) -> Kind:
    """A copy, another dtype: the kind stays. What is rounded to whole numbers is no summand."""
    types = [kind for kind in (*args, *kwargs.values()) if isinstance(kind, torch.dtype)]
    if any(not kind.is_floating_point and not kind.is_complex for kind in types):
        no_partial("a rounding", x)
    return x.kind


def negated(x: Operand) -> Kind:
    """-x: the largest becomes the smallest."""
    sum_or_mean("negated", x)
    return x.kind


def filled_like(x: Operand, *args, **kwargs) -> Kind:
    """Numbers that do not depend on x, in its shape: where x is a summand, they are whole, and no summands."""
    return CONSTANT if x.partial else x.kind
