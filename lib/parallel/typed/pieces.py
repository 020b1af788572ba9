"""The rules of ZeRO's pieces: parameters are gathered from them, and norms add up their squares."""

from math import inf

from lib.parallel.sharding.placement import Partial, Replicate
from lib.parallel.typed.elementwise import operands_in
from lib.parallel.typed.kinds import CONSTANT, ENTERED, Flat, Kind, Operand, PlacementError, written


def gather_parameters(layer, held, pieces: list[Operand]) -> list[Kind]:
    """The pieces of a layer -> its parameters, whole for the time of a call. They have entered: each device has samples
    of its own, and the backward reduce-scatters the gradients."""
    for x in pieces:
        if not isinstance(x.value, Flat):
            raise PlacementError(
                f"a layer of FullySharded gathers what is {written(x.value)}, and not a piece: say with "
                "types.parameters(module) how its parameters are placed, after it was sharded"
            )
    return [ENTERED if x.kind.grad is not None else CONSTANT for x in pieces]


def gather_beside(layer, held, pieces: list[Operand]) -> list[Kind]:
    """Over another axis: what the parameters were there before they were flattened."""
    kinds = []
    for x in pieces:
        value, grad = (part.of if isinstance(part, Flat) else part for part in (x.value, x.kind.grad))
        kinds.append(Kind(value, grad))
    return kinds


def power_sum(grads: list[Operand], norm_type: float, *args) -> Kind:
    """The sum of `|g|^p` over all elements, or the largest `|g|`: of cut gradients a summand, of whole ones whole."""
    operands = operands_in((grads,), {})
    cut = {x.dim is not None for x in operands}
    if any(x.partial for x in operands):
        raise PlacementError("the norm of gradients that are partial sums: sum them over the devices first")
    if len(cut) > 1:
        raise PlacementError(
            "the squares of gradients that are cut are added to those of gradients that are whole, which would count "
            "once on each device: sum those of the cut ones over the devices first, then add the others"
        )
    return Kind(Partial("max" if norm_type == inf else "sum")) if True in cut else CONSTANT


def all_scaled(tensors: list[Operand], factor: Operand | float, *args, **kwargs) -> Kind:
    """All tensors times one factor, in place: it must be the same on all devices."""
    if isinstance(factor, Operand) and factor.value != Replicate():
        raise PlacementError(
            f"gradients are scaled by a factor that is {written(factor.value)}: each device would scale by another "
            "one, and the copies would drift apart"
        )
    return CONSTANT


def seen_inside(*_, **__) -> Kind:
    """A part of a step that is seen as a whole."""
    return CONSTANT
