"""Every verb of a Group gives what torch.distributed gives, on the same inputs."""

import pytest
import torch
import torch.distributed as dist

from lib.devices import Cluster
from lib.devices.pieces import shard_sizes

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64]
OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


def numbers(size, shape, dtype):
    """One tensor for each rank, of whole numbers: any order of additions gives the same bits, in any dtype."""
    return [torch.randint(-20, 21, shape).to(dtype) for _ in range(size)]


def compare(world, ours, theirs, xs, *args):
    """`ours(group, x, *args)` simulated, `theirs(xs, *args)` for real; equal on every rank, to the last bit."""
    real = world.run(theirs, xs, *args)
    simulated = Cluster(world.size).run(lambda group: ours(group, xs[group.rank], *args))
    for rank, (y, z) in enumerate(zip(simulated, real, strict=True)):
        assert (y is None) == (z is None), rank
        if y is not None:
            assert y.dtype == z.dtype
            assert torch.equal(y, z), f"rank {rank}: {y} is not {z}"


def all_reduce(xs, op):
    y = xs[dist.get_rank()]
    dist.all_reduce(y, OPS[op])
    return y


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_reduce(world, op, dtype):
    compare(world, lambda group, x, op: group.all_reduce(x, op), all_reduce, numbers(world.size, (5, 3), dtype), op)


def all_gather(xs, dim):
    x = xs[dist.get_rank()]
    parts = [torch.empty_like(x) for _ in xs]
    dist.all_gather(parts, x)
    return torch.cat(parts, dim)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_gather(world, dim, dtype):
    xs = numbers(world.size, (2, 3), dtype)
    compare(world, lambda group, x, dim: group.all_gather(x, dim), all_gather, xs, dim)


def all_gather_uneven(xs):
    # gloo gathers equal shapes only: so each rank broadcasts its own piece.
    parts = [x if r == dist.get_rank() else torch.empty_like(x) for r, x in enumerate(xs)]
    for r, part in enumerate(parts):
        dist.broadcast(part, src=r)
    return torch.cat(parts)


def test_all_gather_of_uneven_pieces(world):
    xs = [torch.randn(size, 3) for size in shard_sizes(6, world.size)]
    compare(world, lambda group, x: group.all_gather(x), all_gather_uneven, xs)


def reduce_scatter(xs, dim, op):
    pieces = [piece.contiguous() for piece in xs[dist.get_rank()].chunk(len(xs), dim)]
    y = torch.empty_like(pieces[dist.get_rank()])
    dist.reduce_scatter(y, pieces, OPS[op])
    return y


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dim", [0, -1])
def test_reduce_scatter(world, dim, op):
    xs = numbers(world.size, (2 * world.size, world.size), torch.float64)
    compare(world, lambda group, x, dim, op: group.reduce_scatter(x, dim, op), reduce_scatter, xs, dim, op)


def reduce_scatter_uneven(xs):
    # torch.distributed scatters equal pieces only: so each piece is reduced to the rank that is to have it.
    pieces = [piece.clone() for piece in torch.tensor_split(xs[dist.get_rank()], len(xs))]
    for r, piece in enumerate(pieces):
        dist.reduce(piece, dst=r)
    return pieces[dist.get_rank()]


def test_reduce_scatter_of_uneven_pieces(world):
    xs = numbers(world.size, (6, 2), torch.float64)
    compare(world, lambda group, x: group.reduce_scatter(x), reduce_scatter_uneven, xs)


def all_to_all(xs, split_dim, concat_dim):
    # gloo has all_to_all_single alone, which cuts and joins along dim 0: so split_dim is moved to the front.
    x = xs[dist.get_rank()]
    sizes = [part.shape[split_dim] for part in torch.tensor_split(x, len(xs), split_dim)]
    mine = sizes[dist.get_rank()]
    front = x.movedim(split_dim, 0).contiguous()
    arrived = front.new_empty(mine * len(xs), *front.shape[1:])
    dist.all_to_all_single(arrived, front, [mine] * len(xs), sizes)
    return torch.cat([part.movedim(0, split_dim) for part in arrived.split(mine)], concat_dim)


@pytest.mark.parametrize("dims", [(0, 0), (0, 1), (1, 0), (-1, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_to_all_even_and_uneven(world, dims, dtype):
    xs = numbers(world.size, (6, 5), dtype)
    compare(world, lambda group, x, *dims: group.all_to_all(x, *dims), all_to_all, xs, *dims)


def lengths_of(size):
    """What device i sends to device j: uneven, some nothing."""
    return [[(i + 2 * j) % 3 for j in range(size)] for i in range(size)]


def all_to_all_with_sizes(xs):
    rank, table = dist.get_rank(), lengths_of(len(xs))
    coming = [row[rank] for row in table]
    arrived = xs[rank].new_empty(sum(coming), *xs[rank].shape[1:])
    dist.all_to_all_single(arrived, xs[rank], coming, table[rank])
    return arrived


@pytest.mark.parametrize("told", ["table", "own lengths"])
def test_all_to_all_with_sizes(world, told):
    table = lengths_of(world.size)

    def ours(group, x):
        return group.all_to_all(x, sizes=table if told == "table" else table[group.rank])

    many = numbers(world.size, (8, 3), torch.float64)
    compare(world, ours, all_to_all_with_sizes, [x[: sum(row)] for x, row in zip(many, table, strict=True)])


def broadcast(xs, src):
    y = xs[dist.get_rank()]
    dist.broadcast(y, src=src)
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_broadcast(world, dtype):
    for src in range(world.size):
        xs = numbers(world.size, (4,), dtype)
        compare(world, lambda group, x, src: group.broadcast(x, src), broadcast, xs, src)


def reduce(xs, dst, op):
    y = xs[dist.get_rank()]
    dist.reduce(y, dst=dst, op=OPS[op])
    return y if dist.get_rank() == dst else None


@pytest.mark.parametrize("op", OPS)
def test_reduce(world, op):
    for dst in range(world.size):
        xs = numbers(world.size, (3, 2), torch.float64)
        compare(world, lambda group, x, dst, op: group.reduce(x, dst, op), reduce, xs, dst, op)


def scatter(xs, src):
    pieces = [piece.contiguous() for piece in xs[src].chunk(len(xs))]
    y = torch.empty_like(pieces[0])
    dist.scatter(y, pieces if dist.get_rank() == src else None, src=src)
    return y


def test_scatter(world):
    for src in range(world.size):
        xs = numbers(world.size, (3 * world.size, 2), torch.float64)
        compare(world, lambda group, x, src: group.scatter(x, 0, src), scatter, xs, src)


def gather(xs, dst):
    x = xs[dist.get_rank()]
    parts = [torch.empty_like(x) for _ in xs] if dist.get_rank() == dst else None
    dist.gather(x, parts, dst=dst)
    return torch.cat(parts) if parts else None


def test_gather(world):
    for dst in range(world.size):
        xs = numbers(world.size, (3, 2), torch.float64)
        compare(world, lambda group, x, dst: group.gather(x, 0, dst), gather, xs, dst)


def scatter_and_gather_uneven(xs):
    # Equal pieces only, here too: so pieces of any size go as messages.
    rank, size = dist.get_rank(), len(xs)
    mine = torch.tensor_split(xs[0], size)[rank].clone()
    if rank:
        dist.recv(mine, src=0)
        dist.send(mine + 1, dst=0)
        return None
    for r, piece in enumerate(torch.tensor_split(xs[0], size)[1:], start=1):
        dist.send(piece, dst=r)
    parts = [mine + 1] + [torch.empty_like(piece) for piece in torch.tensor_split(xs[0], size)[1:]]
    for r in range(1, size):
        dist.recv(parts[r], src=r)
    return torch.cat(parts)


def test_scatter_and_gather_of_uneven_pieces(world):
    xs = numbers(world.size, (7, 2), torch.float64)
    compare(world, lambda group, x: group.gather(group.scatter(x) + 1), scatter_and_gather_uneven, xs)


def hand_round(xs):
    rank, size = dist.get_rank(), len(xs)
    x = xs[rank]
    if size == 1:
        return x  # gloo does not send to itself
    sent = [dist.isend(x, dst=(rank + 1) % size, tag=1), dist.isend(x + 1, dst=(rank + 1) % size, tag=2)]
    later, earlier = torch.empty_like(x), torch.empty_like(x)
    dist.recv(later, src=(rank - 1) % size, tag=2)
    dist.recv(earlier, src=(rank - 1) % size, tag=1)
    for one in sent:
        one.wait()
    return 2 * later + earlier


def hand_round_simulated(group, x):
    if group.size == 1:
        return x
    group.send(x, dst=(group.rank + 1) % group.size, tag=1)
    group.send(x + 1, dst=(group.rank + 1) % group.size, tag=2)
    later = group.recv(src=(group.rank - 1) % group.size, tag=2)
    return 2 * later + group.recv(src=(group.rank - 1) % group.size, tag=1)


def test_send_and_recv_with_tags(world):
    compare(world, hand_round_simulated, hand_round, numbers(world.size, (3, 2), torch.float64))


def ask_before_it_is_sent(xs):
    rank, size = dist.get_rank(), len(xs)
    if size == 1:
        return xs[0]
    left, right = torch.empty_like(xs[rank]), torch.empty_like(xs[rank])
    asked = [dist.irecv(left, src=(rank - 1) % size, tag=1), dist.irecv(right, src=(rank + 1) % size, tag=2)]
    sent = [dist.isend(xs[rank], (rank + 1) % size, tag=1), dist.isend(-xs[rank], (rank - 1) % size, tag=2)]
    for one in reversed(asked + sent):
        one.wait()
    return left + 10 * right


def ask_before_it_is_sent_simulated(group, x):
    if group.size == 1:
        return x
    before, after = (group.rank - 1) % group.size, (group.rank + 1) % group.size
    left, right = group.recv(before, tag=1, async_op=True), group.recv(after, tag=2, async_op=True)
    group.send(x, after, tag=1)
    group.send(-x, before, tag=2)
    from_the_right = right.wait()
    return left.wait() + 10 * from_the_right


def test_recv_that_is_waited_for_later(world):
    xs = numbers(world.size, (3, 2), torch.float64)
    compare(world, ask_before_it_is_sent_simulated, ask_before_it_is_sent, xs)


def meet(xs):
    dist.barrier()
    return xs[dist.get_rank()]


def test_barrier(world):
    def ours(group, x):
        group.barrier()
        return x

    compare(world, ours, meet, numbers(world.size, (2,), torch.float64))


def sum_within_pairs(xs):
    rank, size = dist.get_rank(), len(xs)
    groups = [dist.new_group(list(range(a, min(a + 2, size)))) for a in range(0, size, 2)]
    y = xs[rank]
    dist.all_reduce(y, group=groups[rank // 2])
    return y


def test_sub_groups(world):
    pairs = [list(range(a, min(a + 2, world.size))) for a in range(0, world.size, 2)]
    xs = numbers(world.size, (3,), torch.float64)
    compare(world, lambda group, x: group.split(pairs).all_reduce(x), sum_within_pairs, xs)
