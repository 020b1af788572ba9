"""Operations that take a part of a tensor, or put parts together."""

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral

from lib.parallel.sharding.placement import Shard
from lib.parallel.typed.elementwise import no_partial, operands_in, shard_or_stay, sum_or_mean, together
from lib.parallel.typed.kinds import (
    Flat,
    Fused,
    Kind,
    Operand,
    PlacementError,
    Rows,
    dims_of,
    from_start,
    written,
)


def split(x: Operand, size: int | list[int], dim: int = 0) -> Kind | list[Kind]:
    """Consecutive parts. Of a dim that is cut, only the blocks of which it is made can be told apart."""
    d = from_start(dim, x.ndim)
    if x.dim != d:
        return x.kind
    if isinstance(x.value, Rows):
        return x.kind  # those of one expert, or of several: how many, data told
    length = x.shape[d]
    sizes = [min(size, length - at) for at in range(0, length, size)] if isinstance(size, Integral) else list(size)
    if sizes == [length]:
        return x.kind
    if isinstance(x.value, Fused):
        return [_blocks_between(x, d, sizes, i) for i in range(len(sizes))]
    raise PlacementError(
        f"split along the dim that is cut ({written(x.value)}): its parts would be those of the own piece"
    )


def _blocks_between(x: Operand, dim: int, sizes: list[int], i: int) -> Kind:
    edges = [0]
    for share in x.value.sizes:
        edges.append(edges[-1] + round(share * x.shape[dim]))
    first, last = sum(sizes[:i]), sum(sizes[: i + 1])
    if first not in edges or last not in edges:
        raise PlacementError(
            f"{written(x.value)} is split at {first} and {last}, but its blocks end at {edges[1:]}: a part would hold "
            "pieces of two blocks"
        )
    inside = x.value.sizes[edges.index(first) : edges.index(last)]
    value = Shard(dim) if len(inside) == 1 else Fused(dim, tuple(share / sum(inside) for share in inside))
    return Kind(value, x.kind.grad and value)


def chunk(x: Operand, chunks: int, dim: int = 0) -> Kind | list[Kind]:
    """As many parts."""
    return split(x, -(-x.shape[from_start(dim, x.ndim)] // chunks), dim)


def unbind(x: Operand, dim: int = 0) -> Kind:
    """One tensor for each index of a dim."""
    return select(x, dim, 0)


def select(x: Operand, dim: int, index: int) -> Kind:
    """One index of a dim, which is gone then."""
    d = from_start(dim, x.ndim)
    if x.dim == d:
        raise PlacementError(
            f"index {index} of the dim that is cut ({written(x.value)}): it is another element on each device. "
            "Gather it first, or index another dim"
        )
    return shard_or_stay(x.kind, None if x.dim is None else x.dim - (d < x.dim))


def cat(tensors: list[Operand], dim: int = 0) -> Kind:
    """One after the other. Along a cut dim, what comes is cut block by block."""
    operands = operands_in((tensors,), {})
    d = from_start(dim, operands[0].ndim)
    if any(x.partial for x in operands):
        if len({x.kind for x in operands}) > 1:
            raise PlacementError(
                f"cat of {' with '.join(written(x.value) for x in operands)}: bring them to one kind first"
            )
        return operands[0].kind
    if not all(x.dim == d for x in operands):
        if any(x.dim == d for x in operands):
            raise PlacementError("cat of a tensor that is cut along this dim with one that is not")
        ones = [
            Operand(x.kind, tuple(1 if i == d else n for i, n in enumerate(x.shape)), x.group_size) for x in operands
        ]
        return together("cat", ones)
    if len(operands) == 1:
        return operands[0].kind
    if any(isinstance(x.value, Rows | Flat) for x in operands):
        return together("cat", [replace(x, shape=(1,) * x.ndim) for x in operands])
    whole = sum(x.shape[d] for x in operands)
    shares = []
    for x in operands:
        inside = x.value.sizes if isinstance(x.value, Fused) else (1.0,)
        shares += [share * x.shape[d] / whole for share in inside]
    value = Fused(d, tuple(shares))
    return Kind(value, value)


def repeat_interleave(x: Operand, repeats: int, dim: int | None = None) -> Kind:
    """Each element `repeats` times in a row."""
    if dim is None and x.dim is not None:
        raise PlacementError("repeat_interleave of a tensor that is cut needs its dim")
    return x.kind


def along(name: str) -> Callable[..., Kind]:
    """The rule of an operation in which elements of one dim look at each other: flip, roll, cumsum, sort."""

    def rule(x: Operand, *args, **kwargs) -> Kind:
        dims = kwargs.get("dims", kwargs.get("dim", args[-1] if args else None))
        if x.dim in dims_of(dims, x.ndim):
            raise PlacementError(f"{name} over the dim that is cut ({written(x.value)}): gather it first")
        if name == "cumprod":
            no_partial(name, x)
        if name == "cumsum":
            sum_or_mean("added", x)
        return x.kind

    return rule


def triangle(name: str) -> Callable[..., Kind]:
    """The rule of tril and triu: which elements are zero, rows and columns say."""

    def rule(x: Operand, diagonal: int = 0) -> Kind:
        no_partial(name, x)
        if x.dim is not None and x.dim >= x.ndim - 2:
            raise PlacementError(
                f"{name} of rows or columns that are cut ({written(x.value)}): each device would count its own from 0 "
                "on. Gather them first"
            )
        return x.kind

    return rule


def picked(x: Operand, dim: int, index: Operand, *more, **named) -> Kind:
    """gather, and scatter: by the numbers in `index`, along a dim that is whole."""
    d = from_start(dim, x.ndim)
    if x.dim == d or index.dim == d:
        raise PlacementError(f"gather or scatter along the dim that is cut ({written(x.value)}): gather it first")
    given = [x, index, *operands_in(more, named)]
    return together("gather", [replace(o, shape=(*o.shape[:d], 1, *o.shape[d + 1 :])) for o in given])


def topk(x: Operand, k: int, dim: int = -1, *args, **kwargs) -> list[Kind]:
    """The k largest of a dim that is whole, and their numbers."""
    if x.partial or x.dim == from_start(dim, x.ndim):
        raise PlacementError(f"topk of a {written(x.value)}: it needs all of the dim. Reduce or gather it first")
    return [x.kind, x.kind.constant]
