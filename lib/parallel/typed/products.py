"""Matrix products: four cases, of which each move of the book is the consequence.

x Replicate,    w Replicate     whole (or entered, if both have entered)
x Replicate,    w cut by columns          cut along the last dim; x must have entered
x cut by rows,  w Replicate               cut by rows; w must have entered
x and w cut along the dim that is summed  a partial sum
"""

from lib.parallel.typed.elementwise import (
    must_have_entered,
    no_partial,
    operands_in,
    shard_or_stay,
    sum_or_mean,
    together,
    whole_together,
)
from lib.parallel.typed.kinds import SUMMAND, Kind, Operand, Own, PlacementError, Rows, written
from lib.parallel.typed.sums import added


def matmul(x: Operand, w: Operand) -> Kind:
    """x (..., n, k) times w (..., k, m)."""
    ndim = max(x.ndim, w.ndim)
    return product(x, w, x.ndim - 1, max(0, w.ndim - 2), ndim)


def linear(x: Operand, weight: Operand, bias: Operand | None = None) -> Kind:
    """x (..., in) times weight (out, in), and a bias."""
    y = product(x, weight, x.ndim - 1, 1, x.ndim, weight_free=0)
    shape = (*x.shape[:-1], weight.shape[0])
    return y if bias is None else added(Operand(y, shape, x.group_size), bias)


def linear_beside(x: Operand, weight: Operand, bias: Operand | None, *group_and_dim) -> Kind:
    """The same where a move over another axis is made with it."""
    return linear(x, weight, bias)


def product(x: Operand, w: Operand, x_sum: int, w_sum: int, ndim: int, weight_free: int | None = None) -> Kind:
    """The kind of the product that sums over dim `x_sum` of x and `w_sum` of w. `weight_free` is that other dim of a
    weight which becomes the last one; without it, w is a matrix as it stands."""
    if x.partial or w.partial:
        return _of_partial(x, w)
    if w.value == Own("expert"):
        return _of_own_expert(x, x_sum)
    if x.dim == x_sum or w.dim == w_sum:
        if x.dim == x_sum and w.dim == w_sum:
            if type(x.value) is not type(w.value):
                raise PlacementError(
                    f"a product of {written(x.value)} with {written(w.value)}: other pieces are multiplied"
                )
            return SUMMAND
        cut, other = (x, w) if x.dim == x_sum else (w, x)
        raise PlacementError(
            f"a product over a dim along which one side is cut ({written(cut.value)}) and the other is not "
            f"({written(other.value)}): cut both along it, or none"
        )
    if x.dim is None and w.dim is None:
        return together("a product", [x, w])
    if x.dim is not None and w.dim is not None:
        if weight_free is None and x.dim + ndim - x.ndim == w.dim + ndim - w.ndim and x.dim < x.ndim - 2:
            return shard_or_stay(x.kind, x.dim + ndim - x.ndim)  # both are stacks of matrices, cut along the stack
        raise PlacementError(
            f"a product of {written(x.value)} with {written(w.value)}: each device would get another block, and most "
            "blocks would be computed by nobody"
        )
    cut, other = (x, w) if x.dim is not None else (w, x)
    must_have_entered(other, f"one that is cut ({written(cut.value)})")
    if cut is x or weight_free is None:
        out = cut.dim + ndim - cut.ndim
        own = out - (ndim - other.ndim)
        if out < ndim - 2 and own >= 0 and other.shape[own] != 1:
            raise PlacementError(f"a stack of {other.shape} that is whole with one that is cut: take the own piece")
        return shard_or_stay(cut.kind, out)
    return shard_or_stay(cut.kind, ndim - 1)


def _of_partial(x: Operand, w: Operand) -> Kind:
    if x.partial and w.partial:
        raise PlacementError("a product of partial sums is not the sum of the products: reduce one of them first")
    partial, other = (x, w) if x.partial else (w, x)
    if other.dim is not None:
        raise PlacementError(f"a partial sum times a {written(other.value)}: reduce the sum first")
    must_have_entered(other, "a partial sum")
    sum_or_mean("multiplied", partial)
    return partial.kind


def _of_own_expert(x: Operand, x_sum: int) -> Kind:
    if isinstance(x.value, Rows) and x.dim != x_sum:
        return x.kind
    raise PlacementError(
        f"a {written(x.value)} tensor is multiplied by the weights of an expert that is here, and each device has "
        "others: send every row to its experts first, by dispatch"
    )


def attention(q: Operand, k: Operand, v: Operand, *args, **kwargs) -> Kind:
    """softmax(q k^T) v: heads and texts do not talk, so they may be cut; tokens and the numbers of a head may not."""
    no_partial("attention", q, k, v)
    for x in (q, k, v):
        if x.dim is not None and x.dim >= x.ndim - 2:
            raise PlacementError(
                f"attention of a {written(x.value)} of {x.ndim} dims: every token needs the keys and values of all "
                "before it. Gather them, or cut the heads"
            )
    given = [q, k, v, *operands_in(args, kwargs)]  # a mask
    if all(x.dim is None for x in given):
        return whole_together(given)
    heads = [Operand(x.kind, tuple(1 if x.dim is None else n for n in x.shape), x.group_size) for x in given]
    kind = together("attention", heads)
    if any(x.dim is None for x in (q, k, v)):
        raise PlacementError("attention of heads that are cut with heads that are whole: cut queries, keys and values")
    return kind
