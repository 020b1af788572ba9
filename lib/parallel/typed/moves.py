"""The moves: the only ways from one kind to another. Each is a collective forward, and its conjugate backward.

    move              from                        to                          bytes forward    backward
    copy_to           Replicate, grad Replicate   Replicate, grad Partial     0                all-reduce
    reduce_from       Partial,   grad Replicate   Replicate, grad Replicate   all-reduce       0
    scatter_to        Replicate, grad Replicate   Shard,     grad Shard       0                all-gather
    gather_from       Shard,     grad Shard       Replicate, grad Replicate   all-gather       0
    all_gather        Shard,     grad Shard       Replicate, grad Partial     all-gather       reduce-scatter
    reduce_scatter    Partial,   grad Replicate   Shard,     grad Shard       reduce-scatter   all-gather
    all_to_all        Shard(i),  grad Shard(i)    Shard(j),  grad Shard(j)    all-to-all       all-to-all
    shard             Replicate, grad Partial     Shard,     grad Shard       0                0

Read a line from right to left, value and gradient exchanged, and it is another line: that is what conjugate means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

from lib.parallel.sharding.placement import Partial, Replicate, Shard
from lib.parallel.typed.kinds import (
    CONSTANT,
    ENTERED,
    SUMMAND,
    WHOLE,
    Kind,
    Operand,
    PlacementError,
    cut_along,
    from_start,
    written,
)
from lib.parallel.typed.products import linear


@dataclass(frozen=True)
class Move:
    """One line of the table: the kind it takes, the kind it makes (`dim` stands for the cut), and what travels."""

    name: str
    takes: Kind
    makes: Kind
    forward: str | None
    backward: str | None

    def bytes(self, numel_bytes: int, devices: int) -> tuple[float, float]:
        """What each device sends, forward and backward, for a whole tensor of so many bytes, by rings."""
        return _sent(self.forward, numel_bytes, devices), _sent(self.backward, numel_bytes, devices)


def _sent(verb: str | None, whole: int, devices: int) -> float:
    share = (devices - 1) / devices
    times = {None: 0, "all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1 / devices}
    return times[verb] * share * whole


CUT = cut_along(0)
MOVES = {
    move.name: move
    for move in (
        Move("copy_to", WHOLE, ENTERED, None, "all_reduce"),
        Move("reduce_from", SUMMAND, WHOLE, "all_reduce", None),
        Move("scatter_to", WHOLE, CUT, None, "all_gather"),
        Move("gather_from", CUT, WHOLE, "all_gather", None),
        Move("all_gather", CUT, ENTERED, "all_gather", "reduce_scatter"),
        Move("reduce_scatter", SUMMAND, CUT, "reduce_scatter", "all_gather"),
        Move("all_to_all", CUT, CUT, "all_to_all", "all_to_all"),
        Move("shard", ENTERED, CUT, None, None),
    )
}


def copy_to(x: Operand, group) -> Kind:
    """f."""
    if x.kind == ENTERED:
        raise PlacementError(
            "a second f: this tensor has entered already, and its gradient would be summed twice, to "
            f"{x.group_size} times too much. Take one copy_to away"
        )
    _takes(x, "copy_to", Replicate())
    return ENTERED if x.kind.grad else CONSTANT


def reduce_from(x: Operand, group) -> Kind:
    """g."""
    _summand(x, "reduce_from", "all-reduce")
    return WHOLE


def scatter_to(x: Operand, group, dim: int) -> Kind:
    """The own piece of what is whole."""
    if x.kind == ENTERED:
        raise PlacementError(
            "scatter_to of a tensor that has entered: its backward gathers pieces, and f would sum them up again, "
            f"{x.group_size} times too much. Take shard, whose backward gathers nothing"
        )
    _takes(x, "scatter_to", Replicate())
    return _cut_now(x, dim)


def gather_from(x: Operand, group, dim: int) -> Kind:
    """All pieces, for what is whole afterwards."""
    _cut(x, "gather_from", dim)
    return WHOLE


def all_gather(x: Operand, group, dim: int) -> Kind:
    """All pieces, for a sharded region."""
    _cut(x, "all_gather", dim)
    return ENTERED


def reduce_scatter(x: Operand, group, dim: int) -> Kind:
    """The own piece of the sum."""
    _summand(x, "reduce_scatter", "reduce-scatter")
    return _cut_now(x, dim)


def all_to_all(x: Operand, group, split_dim: int, concat_dim: int, sizes=None) -> Kind:
    """Another dim is cut."""
    if sizes is not None:
        raise PlacementError("all_to_all with sizes sends rows where data says: types cannot follow them")
    _cut(x, "all_to_all", concat_dim)
    return _cut_now(x, split_dim)


def shard(x: Operand, group, dim: int) -> Kind:
    """The own piece, by a plain slice: its backward is zero elsewhere, so the gradient of x is a partial sum."""
    if x.kind == WHOLE:
        raise PlacementError(
            "the own piece of a whole tensor, by a slice: each device would have the gradient of its piece and zeros, "
            "which nobody sums. Use scatter_to, or copy_to before it"
        )
    _takes(x, "shard", Replicate())
    return _cut_now(x, dim)


def gather_linear(x: Operand, weight: Operand, bias: Operand | None, group, dim: int) -> Kind:
    """all_gather, then the product with a column-parallel weight."""
    whole = list(x.shape)
    whole[from_start(dim, x.ndim)] *= x.group_size
    return linear(Operand(all_gather(x, group, dim), tuple(whole), x.group_size), weight, bias)


def overlapped_linear(x: Operand, weight: Operand, bias: Operand | None, group) -> Kind:
    """copy_to, then the product."""
    return linear(Operand(copy_to(x, group), x.shape, x.group_size), weight, bias)


def stays(name: str) -> Callable[..., Kind]:
    """A move over one axis, seen from another: a linear operation that may not move this axis' own cut dim."""

    def rule(x: Operand, group, *dims, **kwargs) -> Kind:
        dims = [from_start(d, x.ndim) for d in (*dims, *kwargs.values()) if isinstance(d, Integral)]
        if x.dim in dims:
            raise PlacementError(f"{name} along a dim that is cut over another axis too ({written(x.value)})")
        return x.kind

    return rule


def _cut_now(x: Operand, dim: int) -> Kind:
    if x.shape[from_start(dim, x.ndim)] < x.group_size:
        raise PlacementError(
            f"{x.shape} is cut along dim {dim} over {x.group_size} devices: some would have nothing, and a piece of "
            "length 1 would be taken for one that all share"
        )
    return cut_along(from_start(dim, x.ndim))


def _takes(x: Operand, name: str, value) -> None:
    if x.value != value:
        what = "a partial sum: reduce it first" if x.partial else f"a {written(x.value)}"
        raise PlacementError(f"{name} takes a tensor that is whole on every device, and this is {what}")


def _summand(x: Operand, name: str, verb: str) -> None:
    if isinstance(x.value, Replicate):
        raise PlacementError(
            f"a second g: {name} of a tensor that is whole already. Its {verb} would make it {x.group_size} times too "
            "large: take it away"
        )
    if x.value == Partial("mean"):
        raise PlacementError(
            f"{name} of the means of each device's part: their sum is {x.group_size} times the mean. Divide by "
            f"{x.group_size} first"
        )
    if x.value != Partial():
        raise PlacementError(f"{name} of a {written(x.value)}: it would add up pieces that are not summands of one sum")


def _cut(x: Operand, name: str, dim: int) -> None:
    if x.value != Shard(from_start(dim, x.ndim)):
        raise PlacementError(
            f"{name} along dim {from_start(dim, x.ndim)} takes a tensor that is cut along it, and this is "
            f"{written(x.value)}"
        )
