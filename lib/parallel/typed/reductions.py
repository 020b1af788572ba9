"""Sums, means, softmax and norms: a sum over a cut dim is a partial sum, and what is not linear needs the whole dim."""

from collections.abc import Callable, Sequence
from numbers import Integral

from lib.parallel.typed.elementwise import must_have_entered, no_partial, shard_or_stay, sum_or_mean, title, together
from lib.parallel.typed.kinds import (
    SUMMAND,
    WHOLE,
    Kind,
    Operand,
    Own,
    PlacementError,
    dims_of,
    from_start,
    summand,
    written,
)

LOSSES = ("mse_loss", "l1_loss", "cross_entropy", "nll_loss", "binary_cross_entropy_with_logits")


def summed(op: str) -> Callable[..., Kind]:
    """The rule of a sum ("sum"), a mean ("mean": each device has that of its own part), or a largest ("max", "min").

    The mean of the means is that of all where the parts are equally long: types know the length of the own alone.
    """

    def rule(x: Operand, dim=None, keepdim: bool = False, **kwargs) -> Kind | list[Kind]:
        if x.partial:
            if op in ("max", "min"):
                no_partial(op, x)
            sum_or_mean("added", x)
            return x.kind
        gone = dims_of(dim, x.ndim)
        if x.dim in gone:
            if op in ("max", "min"):
                return [summand(op), Kind(Own("index"))]  # where it stands, it says for the own piece
            return SUMMAND if op == "sum" else summand(op)
        return shard_or_stay(x.kind, x.dim if x.dim is None or keepdim else x.dim - sum(d < x.dim for d in gone))

    return rule


def over(name: str) -> Callable[..., Kind]:
    """The rule of an operation that needs a whole dim and keeps it, such as softmax."""

    def rule(x: Operand, dim: int = -1, *args, **kwargs) -> Kind:
        no_partial(name, x)
        if x.dim in dims_of(dim, x.ndim):
            raise PlacementError(
                f"{title(name)} over the dim that is cut ({written(x.value)}): it needs the sum of all, and "
                "each device has that of its own piece. Gather it first, or exchange the two numbers"
            )
        return x.kind

    return rule


def reduced_whole(name: str) -> Callable[..., Kind]:
    """The rule of a reduction that is not linear and not a summand either, such as the variance."""

    def rule(x: Operand, dim=None, keepdim: bool = False, **kwargs) -> Kind:
        no_partial(name, x)
        gone = dims_of(dim, x.ndim)
        if x.dim in gone:
            raise PlacementError(f"{title(name)} over the dim that is cut ({written(x.value)}): gather it first")
        return shard_or_stay(x.kind, x.dim if x.dim is None or keepdim else x.dim - sum(d < x.dim for d in gone))

    return rule


def norm(name: str) -> Callable[..., Kind]:
    """LayerNorm and RMSNorm: each token needs all of its numbers, and all tokens use one weight."""

    def rule(
        x: Operand,
        normalized_shape: Sequence[int],
        weight: Operand | None = None,
        bias: Operand | None = None,
        eps: float | None = None,
    ) -> Kind:
        no_partial(name, x)
        dims = len(normalized_shape) if not isinstance(normalized_shape, Integral) else 1
        if x.dim is not None and x.dim >= x.ndim - dims:
            raise PlacementError(
                f"{title(name)} over the dim that is cut ({written(x.value)}): each token needs the mean of all of its "
                "numbers. Cut the tokens, not the hidden dim"
            )
        given = [p for p in (weight, bias) if p is not None]
        if x.dim is not None and any(p.kind == WHOLE for p in given):
            raise PlacementError(
                f"the gradient of {title(name)}'s weight would not be reduced: each device sees its own tokens only "
                f"({written(x.value)}), so it has a partial sum, and the copies would drift apart. Let weight and bias "
                "enter: copy_to(weight, group)"
            )
        return together(name, [x, *given])

    return rule


def loss(name: str) -> Callable[..., Kind]:
    """A loss of each element or, for cross_entropy, of each token; then a mean, a sum or nothing over them."""

    def rule(x: Operand, target: Operand, *args, reduction: str = "mean", **kwargs) -> Kind:
        no_partial(name, x, target)
        if name in ("cross_entropy", "nll_loss"):
            classes = min(1, x.ndim - 1)
            if x.dim == classes:
                raise PlacementError(
                    f"{name} of logits that are cut along the vocabulary ({written(x.value)}): it would normalize over "
                    "the own columns. Use vocab_parallel_cross_entropy"
                )
            x = Operand(
                shard_or_stay(x.kind, x.dim if x.dim is None or x.dim < classes else x.dim - 1),
                x.shape[:classes] + x.shape[classes + 1 :],
                x.group_size,
            )
        kind = together(name, [x, target])
        if reduction == "none":
            return kind
        weight = kwargs.get("weight", args[0] if args else None)
        if weight is not None and name in ("cross_entropy", "nll_loss") and reduction == "mean" and x.dim is not None:
            raise PlacementError(
                f"{name} with a weight for each class divides by the weights of the own tokens ({written(x.value)}): "
                "the mean of such means is not that of all. Take reduction='sum', and divide by the sum of all weights"
            )
        return summed(reduction)(Operand(kind, x.shape, x.group_size))

    return rule


def vector_norm(x: Operand, *args, **kwargs) -> Kind:
    """The length of a vector: its square would be a partial sum, the length itself is not."""
    no_partial("norm", x)
    if x.dim is not None:
        raise PlacementError(
            f"the norm of one piece ({written(x.value)}) is no part of the norm of the whole: sum the squares, "
            "all-reduce, and take the root"
        )
    return x.kind


def cut_weight(x: Operand, what: str) -> None:
    """Refuses a weight that is cut where the whole one is needed."""
    if x.dim is not None:
        raise PlacementError(f"{what} needs its whole weight, and this one is cut ({written(x.value)})")


__all__ = ["LOSSES", "cut_weight", "from_start", "loss", "must_have_entered", "norm", "over", "summed", "vector_norm"]
