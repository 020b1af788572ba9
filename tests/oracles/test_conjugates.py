"""Every conjugate function is a move between two placements of PyTorch's DTensor, forward and backward.

`from_local` says how the local tensors make up the whole, `redistribute` moves, `to_local` takes the local tensor out.
`grad_placements` says what the gradient that comes back is: Replicate where every rank computes the same one, Partial
where every rank has another part of it. That is where `gather_from` and `all_gather` differ.
"""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from lib import (
    all_gather,
    all_to_all,
    copy_to,
    gather_from,
    reduce_from,
    reduce_scatter,
    scatter_to,
    shard,
)
from lib.devices import Cluster

WHOLE = (12, 24)  # every length divides by 1, 2, 3, 4: for other lengths DTensor cuts by another rule, torch.chunk's

# name: ours, where the input is, where the output is, where the output's gradient is. A dim stands for Shard(dim).
MOVES = {
    "copy_to": (lambda x, group: copy_to(x, group), "replicate", "replicate", "partial"),
    "reduce_from": (lambda x, group: reduce_from(x, group), "partial", "replicate", "replicate"),
    "scatter_to 0": (lambda x, group: scatter_to(x, group, 0), "replicate", 0, 0),
    "scatter_to -1": (lambda x, group: scatter_to(x, group, -1), "replicate", 1, 1),
    "gather_from 0": (lambda x, group: gather_from(x, group, 0), 0, "replicate", "replicate"),
    "gather_from -1": (lambda x, group: gather_from(x, group, -1), 1, "replicate", "replicate"),
    "all_gather 0": (lambda x, group: all_gather(x, group, 0), 0, "replicate", "partial"),
    "all_gather -1": (lambda x, group: all_gather(x, group, -1), 1, "replicate", "partial"),
    "reduce_scatter 0": (lambda x, group: reduce_scatter(x, group, 0), "partial", 0, 0),
    "reduce_scatter -1": (lambda x, group: reduce_scatter(x, group, -1), "partial", 1, 1),
    "all_to_all 0 to 1": (lambda x, group: all_to_all(x, group, 1, 0), 0, 1, 1),
    "all_to_all 1 to 0": (lambda x, group: all_to_all(x, group, 0, -1), 1, 0, 0),
}


def placement(name):
    return {"replicate": Replicate(), "partial": Partial()}.get(name) or Shard(name)


def with_gradient(move, x, upstream):
    x = x.clone().requires_grad_()
    y = move(x)
    y.backward(upstream)
    return y.detach(), x.grad


def move_of_dtensor(xs, upstreams, before, after, of_gradient):
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (len(xs),))

    def move(x):
        y = DTensor.from_local(x, mesh, [placement(before)]).redistribute(mesh, [placement(after)])
        return y.to_local(grad_placements=[placement(of_gradient)])

    return with_gradient(move, xs[rank], upstreams[rank])


def locals_of(where, size):
    """What each rank holds of a tensor that is placed like this."""
    if where == "replicate":
        return [torch.randn(WHOLE, dtype=torch.float64)] * size
    if where == "partial":
        return [torch.randn(WHOLE, dtype=torch.float64) for _ in range(size)]
    return list(torch.randn(WHOLE, dtype=torch.float64).chunk(size, where))


@pytest.mark.parametrize("name", MOVES)
def test_values_and_gradients(world, name):
    ours, before, after, of_gradient = MOVES[name]
    xs, upstreams = locals_of(before, world.size), locals_of(of_gradient, world.size)
    real = world.run(move_of_dtensor, xs, upstreams, before, after, of_gradient)
    simulated = Cluster(world.size).run(
        lambda group: with_gradient(lambda x: ours(x, group), xs[group.rank], upstreams[group.rank])
    )
    for (y, grad), (real_y, real_grad) in zip(simulated, real, strict=True):
        assert y.shape == real_y.shape
        assert torch.allclose(y, real_y, rtol=0, atol=1e-12)
        assert grad.shape == real_grad.shape
        assert torch.allclose(grad, real_grad, rtol=0, atol=1e-12)


class AllReduce(torch.autograd.Function):
    """g by hand, over torch.distributed."""

    @staticmethod
    def forward(ctx, x):
        y = x.clone()
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        return grad


class GatherUneven(torch.autograd.Function):
    """Sequence-parallel gather along dim 0, for pieces of any size: a broadcast from each, a reduce to each back."""

    @staticmethod
    def forward(ctx, x, sizes):
        ctx.sizes = sizes
        parts = [x.new_empty(size, *x.shape[1:]) for size in sizes]
        parts[dist.get_rank()].copy_(x)
        for r, part in enumerate(parts):
            dist.broadcast(part, src=r)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        parts = [part.clone() for part in grad.split(ctx.sizes)]
        for r, part in enumerate(parts):
            dist.reduce(part, dst=r)
        return parts[dist.get_rank()], None


def uneven_region(x, w):
    rank, size = dist.get_rank(), dist.get_world_size()
    pieces = torch.tensor_split(x, size)
    piece = pieces[rank].clone().requires_grad_()
    whole = GatherUneven.apply(piece, [len(p) for p in pieces])
    y = AllReduce.apply((whole * w[rank]).sin())
    y.square().sum().backward()
    return y.detach(), piece.grad


def test_uneven_pieces_against_plain_collectives(world):
    x = torch.randn(7, 3, dtype=torch.float64)
    w = torch.randn(world.size, 7, 3, dtype=torch.float64)

    def program(group):
        piece = shard(x, group, 0).clone().requires_grad_()
        y = reduce_from((all_gather(piece, group, 0) * w[group.rank]).sin(), group)
        y.square().sum().backward()
        return y.detach(), piece.grad

    for ours, theirs in zip(Cluster(world.size).run(program), world.run(uneven_region, x, w), strict=True):
        assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(ours, theirs, strict=True))
