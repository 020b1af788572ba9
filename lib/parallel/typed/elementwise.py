"""Operations that take element by element: what several operands are together, and which are linear.

The gradient decides as much as the value. Whole with cut: each device makes another part of the result, so the gradient
of the whole operand would be Partial. Then it must have entered, by f, and be `Replicate, gradient Partial`.
"""

from collections.abc import Callable
from dataclasses import replace

from lib.parallel.sharding.placement import Partial, Replicate, Shard
from lib.parallel.typed.kinds import (
    CONSTANT,
    ENTERED,
    WHOLE,
    Flat,
    Fused,
    Kind,
    Operand,
    Own,
    PlacementError,
    Rows,
    cut_along,
    written,
)

OWN = {  # why what only this device can read goes into no other operation, and what to do
    "rows": "rows that were looked up for the own tokens: multiply them by the mask of the own tokens first, which "
    "makes them a partial sum",
    "mask": "the mask of the own tokens: it is for the rows that were looked up",
    "index": "the numbers of own rows: they are for a lookup in the own rows of the table",
    "expert": "the weights of an expert that is here, and each device has others: they are for rows sent here",
    "choices": "rows that are still to leave for their experts: let them arrive first",
}
TITLES = {"gelu": "GeLU", "relu": "ReLU", "silu": "SiLU", "layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}


def title(name: str) -> str:
    """How a reader calls it: GeLU, not gelu."""
    return TITLES.get(name, name)


def no_partial(name: str, *operands: Operand) -> None:
    """Refuses a partial sum: of what is not linear, the sum of the results is not the result of the sum."""
    if any(x.partial for x in operands):
        many = title(name) + ("es" if name.endswith(("x", "s")) else "s")
        raise PlacementError(f"{title(name)} of a partial sum is not the sum of the {many}: reduce it first")


def sum_or_mean(how: str, *operands: Operand) -> None:
    """Refuses a largest or smallest that is not yet taken over the devices: that of sums is not the sum of those."""
    for x in operands:
        if x.partial and x.value.op not in ("sum", "mean"):
            raise PlacementError(f"a {written(x.value)} is {how}: reduce it first")


def whole_together(operands: list[Operand], used: str = "used") -> Kind:
    """Of operands that are all Replicate: whole, entered or constant. Refuses a whole beside an entered one."""
    grads = {x.kind.grad for x in operands if x.kind.grad is not None}
    if grads == {Replicate(), Partial()}:
        raise PlacementError(
            f"a whole tensor is {used} with one that has entered the sharded region: its gradient would be a partial "
            "sum that nobody sums. Let it enter too: copy_to(x, group), the f of the papers"
        )
    return CONSTANT if not grads else ENTERED if grads == {Partial()} else WHOLE


def must_have_entered(operand: Operand, what: str) -> None:
    """Refuses a whole operand (gradient Replicate) beside `what`, where its gradient would be a partial sum."""
    if operand.kind == WHOLE:
        raise PlacementError(
            f"a whole tensor is used with {what}: each device sees another part of the result, so its gradient is a "
            "partial sum that nobody sums. f is missing: copy_to(x, group)"
        )


def together(name: str, operands: list[Operand]) -> Kind:
    """What comes of operands of which none is Partial, element by element."""
    ndim = max((x.ndim for x in operands), default=0)
    for x in operands:
        if isinstance(x.value, Own):
            raise PlacementError(f"{title(name)} of {OWN[x.value.what]}")
    cut = [x for x in operands if x.dim is not None]
    if not cut:
        return whole_together(operands)
    dims = {x.dim + ndim - x.ndim for x in cut}  # shapes are aligned at their ends
    first = cut[0]
    unlike = {type(x.value) for x in cut if isinstance(x.value, Rows | Flat)} and len({type(x.value) for x in cut}) > 1
    if unlike or len(dims) > 1 or len({x.value.sizes for x in cut if isinstance(x.value, Fused)}) > 1:
        raise PlacementError(
            f"{title(name)} of pieces that do not belong together: {' with '.join(written(x.value) for x in cut)}. "
            "Bring them to one placement, by all_to_all or a gather"
        )
    (dim,) = dims
    if len({x.shape[x.dim] for x in cut}) > 1:
        raise PlacementError(f"{title(name)} of pieces of other lengths: {', '.join(str(x.shape) for x in cut)}")
    for x in operands:
        if x.dim is not None:
            continue
        must_have_entered(x, f"one that is cut ({written(first.value)})")
        own = dim - (ndim - x.ndim)
        if own >= 0 and x.shape[own] != 1:
            raise PlacementError(
                f"{title(name)} of a tensor {x.shape} that is whole with one that is cut along this dim "
                f"({written(first.value)}): take the own piece of it, by shard or scatter_to"
            )
    if any(isinstance(x.value, Fused) for x in cut):
        fused = next(x.value for x in cut if isinstance(x.value, Fused))
        value = Fused(dim, fused.sizes)
        return Kind(value, value)
    if isinstance(first.value, Rows | Flat):
        value = replace(first.value, dim=dim) if isinstance(first.value, Rows) else first.value
        return Kind(value, value)
    return cut_along(dim)


def operands_in(args: tuple, kwargs: dict) -> list[Operand]:
    """The operands among arguments, lists of them opened."""
    found = []
    for x in (*args, *kwargs.values()):
        if isinstance(x, Operand):
            found.append(x)
        elif isinstance(x, list | tuple):
            found += operands_in(tuple(x), {})
    return found


def nonlinear(name: str) -> Callable[..., Kind]:
    """The rule of an operation that is not linear, on any number of operands."""

    def rule(*args, **kwargs) -> Kind:
        operands = operands_in(args, kwargs)
        no_partial(name, *operands)
        return together(name, operands)

    return rule


def shard_or_stay(kind: Kind, dim: int | None) -> Kind:
    """The same kind, its cut at another dim."""
    if isinstance(kind.value, Fused):
        value = Fused(dim, kind.value.sizes)
        return Kind(value, kind.grad and value)
    if isinstance(kind.value, Shard | Rows):
        value = type(kind.value)(dim)
        return Kind(value, kind.grad and value)
    return kind
