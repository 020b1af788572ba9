"""Operations that look at the same numbers in another shape: where the cut is afterwards."""

from math import prod
from numbers import Integral

from lib.parallel.typed.elementwise import shard_or_stay
from lib.parallel.typed.kinds import Fused, Kind, Operand, PlacementError, dims_of, from_start, written


def transpose(x: Operand, dim0: int = 0, dim1: int = 1) -> Kind:
    """Two dims change places, and the cut with them."""
    a, b = from_start(dim0, x.ndim), from_start(dim1, x.ndim)
    return shard_or_stay(x.kind, {a: b, b: a}.get(x.dim, x.dim))


def permute(x: Operand, *dims) -> Kind:
    """All dims in another order."""
    order = dims_of(dims[0] if len(dims) == 1 and not isinstance(dims[0], Integral) else dims, x.ndim)
    return shard_or_stay(x.kind, None if x.dim is None else order.index(x.dim))


def t(x: Operand) -> Kind:
    """.T, .mT and t() of a matrix."""
    return transpose(x, -2, -1) if x.ndim > 1 else x.kind


def unsqueeze(x: Operand, dim: int) -> Kind:
    """One dim of length 1 more."""
    at = dim % (x.ndim + 1)
    return shard_or_stay(x.kind, x.dim if x.dim is None or x.dim < at else x.dim + 1)


def squeeze(x: Operand, dim: int | tuple[int, ...] | None = None) -> Kind:
    """Dims of length 1 less."""
    gone = [d for d in dims_of(dim, x.ndim) if x.shape[d] == 1]
    if x.dim in gone:
        raise PlacementError(f"squeeze of the dim that is cut ({written(x.value)}): it is longer on fewer devices")
    return shard_or_stay(x.kind, None if x.dim is None else x.dim - sum(d < x.dim for d in gone))


def reshaped(x: Operand, asked: tuple[int, ...]) -> Kind:
    """The kind after a view as `asked`. Dims that become others are found as groups of equal products; a cut dim must
    be the first of its group, or the pieces of one device would no longer lie together. Where the own piece is of
    length 1, -1 tells which dim it becomes."""
    if x.dim is None:
        return x.kind
    known = prod(n for n in asked if n != -1)
    shape = tuple(prod(x.shape) // known if n == -1 else n for n in asked)
    for old, new in _groups(x.shape, shape):
        if x.dim not in old:
            continue
        real = [d for d in old if x.shape[d] != 1 or d == x.dim]
        if real[0] != x.dim:
            raise PlacementError(
                f"{x.shape} is reshaped to {shape}, and dim {x.dim}, which is cut, is not the first of the dims that "
                "become one: the elements of a device do not lie together in the whole. Transpose it to the front"
            )
        if isinstance(x.value, Fused) and len(real) + len(new) > 2:
            raise PlacementError(f"{written(x.value)} is reshaped: split it into its blocks first")
        ones = [d for d in new if asked[d] != 1]
        if not new or (shape[new[0]] == 1 and len(new) > 1 and (not ones or asked[ones[0]] != -1)):
            raise PlacementError(
                f"{x.shape} is reshaped to {shape}: which dim the cut one becomes cannot be told. Write -1 for it"
            )
        return shard_or_stay(x.kind, ones[0] if ones else new[0])
    raise PlacementError(f"{x.shape} cannot be reshaped to {shape}")


def _groups(old: tuple[int, ...], new: tuple[int, ...]):
    """The smallest runs of dims of `old` and `new` with equal products: [0, 1], [0] for (2, 3, 5) and (6, 5)."""
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(a), j + len(b)
        while (left := prod(old[d] for d in a)) != (right := prod(new[d] for d in b)):
            if left < right and i < len(old):
                a.append(i)
                i += 1
            elif left > right and j < len(new):
                b.append(j)
                j += 1
            else:
                raise PlacementError(f"{old} cannot be reshaped to {new}")
        yield a, b


def view(x: Operand, *shape) -> Kind:
    """view and reshape, with one -1 or none."""
    if len(shape) == 1 and not isinstance(shape[0], Integral):
        shape = shape[0]
    return reshaped(x, tuple(shape))


def view_as(x: Operand, other: Operand) -> Kind:
    """The shape of another tensor. Where one piece of length 1 could be several dims, that one tells."""
    try:
        return reshaped(x, other.shape)
    except PlacementError:
        before = prod(other.shape[: other.dim or 0])
        if other.dim is None or before != prod(x.shape[: x.dim]):
            raise
        return shard_or_stay(x.kind, other.dim)


def flatten(x: Operand, start_dim: int = 0, end_dim: int = -1) -> Kind:
    """Dims from `start_dim` to `end_dim` become one."""
    a, b = from_start(start_dim, x.ndim), from_start(end_dim, x.ndim)
    return reshaped(x, (*x.shape[:a], prod(x.shape[a : b + 1]), *x.shape[b + 1 :]))


def unflatten(x: Operand, dim: int, sizes: tuple[int, ...]) -> Kind:
    """One dim becomes several."""
    d = from_start(dim, x.ndim)
    return reshaped(x, (*x.shape[:d], *sizes, *x.shape[d + 1 :]))


def expand(x: Operand, *shape) -> Kind:
    """Dims of length 1 are repeated."""
    if len(shape) == 1 and not isinstance(shape[0], Integral):
        shape = shape[0]
    return shard_or_stay(x.kind, None if x.dim is None else x.dim + len(shape) - x.ndim)
