"""Looking up rows by tokens, and the loss over a cut vocabulary."""

from dataclasses import replace

from lib.parallel.sharding.placement import Replicate
from lib.parallel.typed.elementwise import no_partial, nonlinear, together
from lib.parallel.typed.kinds import CONSTANT, WHOLE, Kind, Operand, Own, PlacementError, cut_along, written
from lib.parallel.typed.moves import reduce_from, shard, stays
from lib.parallel.typed.reductions import summed
from lib.parallel.typed.sums import added, scaled


def embedding(tokens: Operand, weight: Operand, *args, **kwargs) -> Kind:
    """tokens (...) and weight (rows, hidden) -> (..., hidden)."""
    no_partial("embedding", tokens, weight)
    if weight.dim == 0:
        if tokens.value == Own("index"):
            return Kind(Own("rows"), Own("rows"))
        raise PlacementError(
            f"tokens are looked up in a table of which each device has some rows ({written(weight.value)}): row 3 is "
            "another one on each. Ask own_tokens(tokens, rows, group) which are here"
        )
    if isinstance(tokens.value, Own):
        raise PlacementError(f"own tokens are looked up in a table not cut along its rows: {written(weight.value)}")
    if weight.dim == 1:
        if tokens.dim is not None:
            raise PlacementError(f"embedding of {written(tokens.value)} tokens in a {written(weight.value)} table")
        return cut_along(tokens.ndim)
    rows = Operand(weight.kind, (1,) * (tokens.ndim + 1), weight.group_size)
    with_hidden = Operand(tokens.kind, (*tokens.shape, 1), tokens.group_size)
    return together("embedding", [with_hidden, rows])


def own_tokens(tokens: Operand, width: int, group) -> list[Kind]:
    """Which tokens' rows are here, and their numbers among the own rows."""
    if tokens.value != Replicate():
        raise PlacementError(f"own_tokens needs the tokens whole on all devices, not {written(tokens.value)}")
    return [Kind(Own("mask")), Kind(Own("index"))]


def vocab_parallel_cross_entropy(logits: Operand, targets: Operand, group, *args, **kwargs) -> Kind:
    """logits (batch, S, V/P) Shard(2), targets whole -> the loss of each token, whole."""
    no_partial("cross-entropy", logits, targets)
    if logits.dim != logits.ndim - 1:
        raise PlacementError(f"vocab_parallel_cross_entropy needs logits cut along the vocabulary, not {logits.kind}")
    if targets.kind not in (CONSTANT, WHOLE):
        raise PlacementError(f"vocab_parallel_cross_entropy needs whole targets, not {written(targets.value)}")
    # By its steps, log sum exp(z - max z) - (z[t] - max z):
    tokens = replace(logits, shape=logits.shape[:-1])
    largest = replace(tokens, kind=CONSTANT, shape=(*tokens.shape, 1))  # an all-reduce by max, without a gradient
    shifted = replace(logits, kind=added(logits, largest))
    powers = replace(shifted, kind=nonlinear("exp")(shifted))
    total = replace(tokens, kind=reduce_from(replace(tokens, kind=summed("sum")(powers, -1)), group))
    found = replace(logits, kind=Kind(Own("rows"), Own("rows")))  # z[t] where the target is here, and else anything
    wanted = replace(tokens, kind=reduce_from(replace(tokens, kind=scaled(found, _mask(found))), group))
    return added(replace(total, kind=nonlinear("log")(total)), wanted)


def _mask(rows: Operand) -> Operand:
    return replace(rows, kind=Kind(Own("mask")))


def vocab_parallel_beside(logits: Operand, targets: Operand, *args, **kwargs) -> Kind:
    """The same over another axis than the vocabulary's: token by token."""
    no_partial("cross-entropy", logits, targets)
    ends = Operand(targets.kind, (*targets.shape, 1), targets.group_size)
    kind = together("cross-entropy", [logits, ends])
    if logits.dim == logits.ndim - 1:
        raise PlacementError("the vocabulary is cut over one axis, and the loss is summed over another")
    return kind


def own_places(attention, x: Operand, dim: int = 1) -> Kind:
    """The own tokens of a sequence, by `ContextAttention.own`: a slice, as `shard`."""
    return shard(x, None, dim)


def own_places_beside(attention, x: Operand, dim: int = 1) -> Kind:
    """The same over another axis."""
    return stays("own")(x, None, dim)
