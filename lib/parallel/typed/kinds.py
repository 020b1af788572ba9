"""What a tensor is over one group of devices: where its value is, and where the gradient of it will be.

There are four kinds, and each has its own gradient:

    value        gradient     in words
    Replicate    Replicate    whole: all devices do the same with it
    Replicate    Partial      entered: each device does another part of the work with it, so their gradients add up
    Shard(d)     Shard(d)     cut
    Partial      Replicate    summand: d(a + b)/da = 1, so each summand gets the gradient of the sum

The first two hold the same numbers. That only the gradient tells them apart is why a forgotten f is never seen in the
forward. A tensor that needs no gradient has none (`grad` is None), and fits where a whole or an entered one does.

Two more stand for pieces whose lengths data or a flat layout tells: `Rows` for the rows that go to experts, and `Flat`
for ZeRO's pieces. Both are cut, gradient too.

The same four are in Meta's spmd_types under the names I, R, S and P (github.com/meta-pytorch/spmd_types).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral

from lib.parallel.sharding.placement import Partial, Replicate, Shard


@dataclass(frozen=True)
class Fused:
    """Shard(dim) of each of several blocks that lie one after the other, such as [queries | keys | values]. `sizes` are
    the lengths of this device's blocks, as shares of one that they add up to."""

    dim: int
    sizes: tuple[float, ...]


@dataclass(frozen=True)
class Own:
    """What only this device can read: the `index` of its own rows, the `mask` of tokens it has, the `rows` found, an
    `expert` that is here, or the `choices` that are to leave for theirs."""

    what: str


@dataclass(frozen=True)
class Rows:
    """Cut along `dim`, in an order and in lengths that data tells: rows on the devices of their experts."""

    dim: int = 0


@dataclass(frozen=True)
class Flat:
    """This device's elements of a tensor that is flattened and cut, maybe none: a piece of ZeRO. Over another axis than
    that of the cut, `of` is what the tensor is there before it is flattened."""

    of: "Shard | Replicate | Fused" = Replicate()

    @property
    def dim(self) -> int:
        """A piece has one dim."""
        return 0


Value = Shard | Replicate | Partial | Fused | Own | Rows | Flat
Cut = Shard | Fused | Rows | Flat


@dataclass(frozen=True)
class Kind:
    """Over one group: the placement of the value and that of its gradient (None without one).

    `share` marks what is whole and was divided by P: so as a summand it is one of P equal ones. It may still be used as
    the whole tensor that it is, so it makes no other kind.
    """

    value: Value
    grad: Value | None = None
    share: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        gradient = "no gradient" if self.grad is None else f"gradient {written(self.grad)}"
        return f"{written(self.value)}, {gradient}"

    @property
    def short(self) -> str:
        """In one word: `R|R` is Replicate with gradient Replicate, `R|P`, `S0|S0`, `P|R`; `R|-` has no gradient."""
        return f"{_letter(self.value)}|{'-' if self.grad is None else _letter(self.grad)}"

    @property
    def constant(self) -> "Kind":
        """The same value without a gradient."""
        return replace(self, grad=None)

    @property
    def trained(self) -> "Kind":
        """The same value with the gradient that goes with it: that of a piece is cut, that of a summand whole."""
        if self.grad is not None or isinstance(self.value, Replicate):
            return self
        return replace(self, grad=Replicate() if isinstance(self.value, Partial) else self.value)


WHOLE = Kind(Replicate(), Replicate())
ENTERED = Kind(Replicate(), Partial())
SUMMAND = Kind(Partial(), Replicate())
CONSTANT = Kind(Replicate())


def cut_along(dim: int) -> Kind:
    """The kind of what is cut along `dim`."""
    return Kind(Shard(dim), Shard(dim))


def summand(op: str) -> Kind:
    """Partial by another operation than the sum: "mean" (each device has the mean of its own part), "max"."""
    return Kind(Partial(op), Replicate())


def written(value: Value) -> str:
    """`Shard(1)`, `Replicate`, `Partial`, `Partial(mean)`."""
    match value:
        case Shard(dim):
            return f"Shard({dim})"
        case Fused(dim, sizes):
            return f"Shard({dim}) of each of {len(sizes)} blocks"
        case Partial("sum"):
            return "Partial"
        case Partial(op):
            return f"Partial({op})"
        case Own(what):
            return f"own {what}"
        case Rows():
            return "rows of experts"
        case Flat():
            return "flat piece"
    return "Replicate"


def _letter(value: Value) -> str:
    match value:
        case Shard(dim) | Fused(dim):
            return f"S{dim}"
        case Partial("sum"):
            return "P"
        case Partial(op):
            return f"P{op}"
        case Own() | Rows() | Flat():
            return type(value).__name__.lower()
    return "R"


@dataclass(frozen=True)
class Operand:
    """What a rule sees in the place of a tensor: its kind over the group, and the shape of this device's tensor.
    `peers` are the sizes of the other groups over which its value is of the same kind."""

    kind: Kind
    shape: tuple[int, ...]
    group_size: int
    peers: tuple[int, ...] = ()

    @property
    def value(self) -> Value:
        return self.kind.value

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dim(self) -> int | None:
        """Along which dim it is cut, from 0 on; None when it is not."""
        return self.value.dim if isinstance(self.value, Cut) else None

    @property
    def partial(self) -> bool:
        return isinstance(self.value, Partial)


class PlacementError(ValueError):
    """An operation that has no meaning for these placements, or a gradient that nobody would sum."""


def from_start(dim: int, ndim: int) -> int:
    """`dim` counted from the first: -1 of 3 dims is 2."""
    return dim % ndim if ndim else 0


def dims_of(dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """The dims that an operation goes over; None are all."""
    if dim is None:
        return tuple(range(ndim))
    return tuple(from_start(d, ndim) for d in ((dim,) if isinstance(dim, Integral) else dim))
