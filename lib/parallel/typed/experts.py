"""The rules of experts: rows leave for the devices of their experts, and their answers come back.

Which rows, and how many, data tells. So the kind says only that: `Rows`. Rows meet an expert that is here, or weights
that have entered, and nothing that is cut otherwise. Two things are found by it: a weight of experts that meets tokens
which were not sent, and gates that meet partial answers and have not entered. Not found is a wrong order of rows.
"""

from lib.parallel.sharding.placement import Partial, Replicate, Shard
from lib.parallel.typed.elementwise import no_partial, together
from lib.parallel.typed.kinds import CONSTANT, Kind, Operand, Own, PlacementError, Rows, cut_along, written
from lib.parallel.typed.parts import unbind
from lib.parallel.typed.products import product
from lib.parallel.typed.sums import scaled

ROWS = Kind(Rows(), Rows())


def dispatch(x: Operand, plan, group) -> Kind:
    """Tokens (n/P, h), cut along dim 0 -> the rows of this device's experts."""
    _tokens(x, "dispatch")
    return ROWS


def dispatch_beside(x: Operand, plan, group) -> Kind:
    """Over another axis: other tokens in another order, or the same."""
    return ROWS if x.dim == 0 else _linear(x, "dispatch")


def combine(y: Operand, plan, group, gates: Operand) -> Kind:
    """The experts' answers (A, h), and gates (n/P, k) of the tokens -> (n/P, h)."""
    _rows(y, "combine")
    _tokens(gates, "combine, in the gates,")
    return cut_along(0) if isinstance(gates.value, Shard) else ROWS


def combine_beside(y: Operand, plan, group, gates: Operand) -> Kind:
    """Over another axis, where the answers may be partial: a product with the gates."""
    if y.dim == 0:
        return combine(y, plan, group, gates)
    one = Operand(gates.kind, (*gates.shape[:-1], 1), gates.group_size)
    return scaled(y, one) if y.partial else together("combine", [y, one])


def set_out(x: Operand, plan, group) -> list[Kind]:
    """`dispatch` in two steps: the rows that leave, and a handle."""
    _tokens(x, "dispatch")
    return [Kind(Own("choices"), Own("choices"))]


def set_out_beside(x: Operand, plan, group) -> list[Kind]:
    """Over another axis."""
    return [dispatch_beside(x, plan, group)]


def arrive(x: Operand, under_way, group, plan) -> Kind:
    """The rows of this device's experts."""
    if x.value != Own("choices"):
        raise PlacementError(f"arrive takes the rows that have set out, not a {written(x.value)}")
    return ROWS


def count_rows(chosen: Operand, experts: int) -> Kind:
    """How many of these choices are for each expert: of own tokens, a summand."""
    no_partial("count_rows", chosen)
    return Kind(Partial()) if chosen.dim is not None else CONSTANT


def rows_of_all(counts: Operand, group) -> Kind:
    """The counts of all devices, one below the other: the same table everywhere."""
    if counts.value != Partial():
        raise PlacementError(
            f"rows_of_all takes the counts of each device's own tokens, and these are {written(counts.value)}: the "
            f"tokens are the same on all {counts.group_size} devices, and would be sent {counts.group_size} times"
        )
    return CONSTANT


def planned(chosen: Operand, *_, **__) -> Kind:
    """A plan is for this device alone, and holds no tensor that a program reads."""
    no_partial("plan", chosen)
    return CONSTANT


def same(x: Operand, *_, **__) -> Kind:
    """Over another axis nothing happens."""
    return x.kind


def keep_first(chosen: Operand, everyone: Operand, *rank_and_room) -> list[Kind]:
    """What is kept of the choices, and of the table."""
    return [chosen.kind.constant, everyone.kind.constant]


def own_choice(scores: Operand, *_, **__) -> Kind:
    """What is chosen of own tokens, by looking at those of all: for each own token, without a gradient."""
    no_partial("choosing", scores)
    return scores.kind.constant


def each_expert(w: Operand) -> Kind | list[Kind]:
    """The weights (E/P, ...) -> those of each expert that is here."""
    return Kind(Own("expert"), w.kind.grad and Own("expert")) if w.dim == 0 else unbind(w)


def grouped_mm(x: Operand, w: Operand, *args, **kwargs) -> Kind:
    """Rows (A, in), expert by expert, times the weights (E/P, in, out) of the experts here: as each by itself."""
    no_partial("a grouped product", w)
    return product(x, Operand(each_expert(w), w.shape[1:], w.group_size), x.ndim - 1, 0, 2)


def _tokens(x: Operand, name: str) -> None:
    if x.dim != 0:
        raise PlacementError(
            f"{name} takes tokens that are cut, each device its own, and this is {written(x.value)}"
            + (": every row would be sent once from each device" if isinstance(x.value, Replicate) else "")
        )


def _rows(y: Operand, name: str) -> None:
    if not isinstance(y.value, Rows):
        raise PlacementError(f"{name} takes the rows that experts have answered, and this is {written(y.value)}")


def _linear(x: Operand, name: str) -> Kind:
    if x.partial or x.dim is None:
        return x.kind
    raise PlacementError(f"{name} of a {written(x.value)}: rows are sent whole")
