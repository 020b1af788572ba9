"""Collectives that know their backward.

A verb of a `Group` is blind to gradients. These functions are not: each stands with its backward directly under its
forward, and the two are conjugate, so a program that uses them trains exactly as one device would.

The convention: the loss is replicated, and every device calls `backward()` on its own copy. Then the gradient of a
replicated value is replicated too, and two facts follow. A value that enters a sharded region (`copy_to`) is used by
every device for another part of the result, so its gradient is the sum over devices. A sum that leaves one
(`reduce_from`) hands its gradient unchanged to every summand, since d(a + b)/da = 1.

    function         forward            backward           in papers
    copy_to          identity           all-reduce         f
    reduce_from      all-reduce         identity           g
    scatter_to       own slice          all-gather
    gather_from      all-gather         own slice
    all_gather       all-gather         reduce-scatter     g with sequence parallelism, entering
    reduce_scatter   reduce-scatter     all-gather         g with sequence parallelism, leaving
    all_to_all       all-to-all         all-to-all back

f and g: Shoeybi et al. 2019, arXiv 1909.08053, section 3; with sequence parallelism: Korthikanti et al. 2022, arXiv
2205.05198, section 4.2.2.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.autograd import Function

from lib.devices import Group
from lib.devices.group import Sizes
from lib.parallel.sharding.first_order import first_order
from lib.parallel.sharding.named import named
from lib.parallel.sharding.shards import check_rule, gather_pieces, shard
from lib.partners import partner_of


@named
def copy_to(x: Tensor, group: Group) -> Tensor:
    """Into a sharded region. Forward: identity, Replicate -> Replicate. Backward: all-reduce, Partial -> Replicate."""
    return _CopyTo.apply(x, group)


class _CopyTo(Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        return ctx.group.all_reduce(grad), None


@partner_of("all_reduce")
@named
def reduce_from(x: Tensor, group: Group) -> Tensor:
    """Out of a sharded region. Forward: all-reduce, Partial -> Replicate. Backward: identity."""
    return _ReduceFrom.apply(x, group)


class _ReduceFrom(Function):
    @staticmethod
    def forward(ctx, x, group):
        return group.all_reduce(x)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        return grad, None


@partner_of("scatter")
@named
def scatter_to(x: Tensor, group: Group, dim: int) -> Tensor:
    """Forward: this device's piece along `dim`, Replicate -> Shard(dim). Backward: all-gather."""
    return _ScatterTo.apply(x, group, dim)


class _ScatterTo(Function):
    @staticmethod
    def forward(ctx, x, group, dim):
        ctx.group, ctx.dim = group, dim
        return shard(x, group, dim).contiguous()

    @staticmethod
    @first_order
    def backward(ctx, grad):
        return ctx.group.all_gather(grad, ctx.dim), None, None


@partner_of("gather", "all_gather")
@named
def gather_from(x: Tensor, group: Group, dim: int) -> Tensor:
    """Forward: all-gather, Shard(dim) -> Replicate. Backward: this device's piece of the gradient.

    Right when what follows is replicated: every device then computes the same gradient, and its own piece is all it
    needs. If a sharded region follows, use `all_gather`.
    """
    return _GatherFrom.apply(x, group, dim)


class _GatherFrom(Function):
    @staticmethod
    def forward(ctx, x, group, dim):
        ctx.group, ctx.dim = group, dim
        return gather_pieces(x, group, dim, "gather_from")

    @staticmethod
    @first_order
    def backward(ctx, grad):
        return shard(grad, ctx.group, ctx.dim), None, None


@partner_of("all_gather")
@named
def all_gather(x: Tensor, group: Group, dim: int) -> Tensor:
    """Forward: all-gather, Shard(dim) -> Replicate. Backward: reduce-scatter, Partial -> Shard(dim).

    Right when a sharded region follows: every device then has another part of the gradient.
    """
    return _AllGather.apply(x, group, dim)


class _AllGather(Function):
    @staticmethod
    def forward(ctx, x, group, dim):
        ctx.group, ctx.dim = group, dim
        return gather_pieces(x, group, dim, "all_gather")

    @staticmethod
    @first_order
    def backward(ctx, grad):
        return ctx.group.reduce_scatter(grad, ctx.dim), None, None


@partner_of("reduce_scatter")
@named
def reduce_scatter(x: Tensor, group: Group, dim: int) -> Tensor:
    """Forward: reduce-scatter, Partial -> Shard(dim). Backward: all-gather, Shard(dim) -> Replicate."""
    return _ReduceScatter.apply(x, group, dim)


class _ReduceScatter(Function):
    @staticmethod
    def forward(ctx, x, group, dim):
        ctx.group, ctx.dim = group, dim
        return group.reduce_scatter(x, dim)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        return ctx.group.all_gather(grad, ctx.dim), None, None


@partner_of("all_to_all")
@named
def all_to_all(x: Tensor, group: Group, split_dim: int, concat_dim: int, sizes: Sizes | None = None) -> Tensor:
    """Forward: all-to-all, Shard(concat_dim) -> Shard(split_dim). Backward: the all-to-all back.

    With `sizes` (see `Group.all_to_all`) the dims are the same, and pieces of any length change places.
    """
    return _AllToAll.apply(x, group, split_dim, concat_dim, sizes)


class _AllToAll(Function):
    @staticmethod
    def forward(ctx, x, group, split_dim, concat_dim, sizes):
        ctx.group, ctx.split_dim, ctx.concat_dim, ctx.back = group, split_dim, concat_dim, None
        if sizes is not None:
            table = sizes if isinstance(sizes[0], Sequence) else group.table_of(sizes)
            ctx.back = tuple(zip(*table, strict=True))  # what came from i goes back to i
            return group.all_to_all(x, split_dim, concat_dim, sizes=table)
        if split_dim % x.ndim == concat_dim % x.ndim:
            raise ValueError(
                f"all_to_all on rank {group.rank} of {group.size}: split_dim={split_dim} and concat_dim={concat_dim} "
                f"are the same dim of a {tuple(x.shape)} tensor; it moves a shard from one dim to another"
            )
        y = group.all_to_all(x, split_dim, concat_dim)
        check_rule(x.shape[concat_dim], y.shape[concat_dim], group, concat_dim, "all_to_all")
        return y

    @staticmethod
    @first_order
    def backward(ctx, grad):
        return ctx.group.all_to_all(grad, ctx.concat_dim, ctx.split_dim, sizes=ctx.back), None, None, None, None
