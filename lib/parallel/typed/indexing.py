"""x[index]: which dim is the cut one afterwards."""

from numbers import Integral

from lib.parallel.sharding.placement import Partial, Shard
from lib.parallel.typed.elementwise import shard_or_stay
from lib.parallel.typed.kinds import Fused, Kind, Operand, Own, PlacementError, written


def indexed(x: Operand, index) -> Kind:
    """x[index]: numbers, slices, ..., None, lists and tensors; a cut dim can only be taken whole."""
    index = index if isinstance(index, tuple) else (index,)
    _check_lists(x, index)
    given = sum(i is not None and i is not Ellipsis for i in index)
    old, new, to = 0, 0, None
    if Ellipsis not in index:
        index = (*index, Ellipsis)
    for i in index:
        if i is None:
            new += 1
            continue
        if i is Ellipsis:
            for _ in range(x.ndim - given):
                to = new if old == x.dim else to
                old, new = old + 1, new + 1
            continue
        if old == x.dim and i != slice(None):
            raise PlacementError(
                f"index {_told(i)} of the dim that is cut ({written(x.value)}): it is another element on each device. "
                "Gather it first, or index another dim"
            )
        if isinstance(i, slice):
            to = new if old == x.dim else to
        new += isinstance(i, slice | list) or (isinstance(i, Operand) and i.ndim)
        old += 1
    if isinstance(x.value, Own):
        return x.kind
    return shard_or_stay(x.kind, to)


def _check_lists(x: Operand, index: tuple) -> None:
    """Refuses lists and tensors as an index where each device has others, or where they move the cut dim."""
    lists = [i for i in index if isinstance(i, Operand | list)]
    tensors = [i for i in lists if isinstance(i, Operand)]
    for i in tensors:
        if isinstance(i.value, Shard | Fused | Partial):
            raise PlacementError(f"an index that is {written(i.value)}: each device would take others. Gather it first")
    several = len(lists) + sum(isinstance(i, Integral) for i in index) > 1 or any(i.ndim > 1 for i in tensors)
    if lists and several and x.dim is not None:
        raise PlacementError(
            f"an index of several lists, or of more than one dim, into what is cut ({written(x.value)}): nothing here "
            "knows which dim is the cut one afterwards. Take one after the other"
        )


def _told(i) -> str:
    return f"{i.start or ''}:{i.stop or ''}" if isinstance(i, slice) else str(i)
