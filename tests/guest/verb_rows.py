"""Small programs, each with one way of talking that torch.distributed has on gloo. A file that real processes import.

Their numbers are whole: sums are the same to the bit, in any order.
"""

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.nn.functional as differentiable
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _coalescing_manager

Op = dist.ReduceOp


def numbers(*shape, dtype=torch.float32, seed=0):
    """Others on each rank."""
    stream = torch.Generator().manual_seed(100 * seed + dist.get_rank())
    x = torch.randint(1, 6, shape, generator=stream)
    return x > 2 if dtype == torch.bool else x.to(dtype)


def here():
    """Rank, size, and both neighbors."""
    rank, size = dist.get_rank(), dist.get_world_size()
    return rank, size, (rank + 1) % size, (rank - 1) % size


def all_reduce():
    found = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8):
        for op in (Op.SUM, Op.PRODUCT, Op.MAX, Op.MIN):
            x = numbers(2, 3, dtype=dtype)
            assert dist.all_reduce(x, op) is None
            found[str(op), dtype] = x
    for op in (Op.BAND, Op.BOR, Op.BXOR):
        for dtype in (torch.int64, torch.uint8):
            found[str(op), dtype] = numbers(5, dtype=dtype)
            dist.all_reduce(found[str(op), dtype], op=op)
    return found


def of_every_form():
    """Single numbers, no numbers, views, rows that lie apart, complex ones, a leaf that asks for its gradient."""
    leaf = numbers(3).requires_grad_()
    kept = numbers(4, 6)
    view = kept[1:3]
    pair = torch.complex(numbers(2), numbers(2, seed=1))
    for x in (numbers(1)[0], torch.empty(0, 3), leaf, view, pair):
        dist.all_reduce(x)
        dist.broadcast(x, 1)
    return kept, leaf, pair


def sparse():
    """Elements that only some devices have, or none; whole rows; and an order in which they were not sorted."""
    rank, size, *_ = here()
    row = torch.sparse_coo_tensor([[size, rank, size]], numbers(3, 2), (size + 1, 2), check_invariants=True)
    alone = torch.sparse_coo_tensor([[1] * rank, [2] * rank], numbers(rank), (3, 4), check_invariants=True)
    dist.all_reduce(row)
    dist.all_reduce(alone, async_op=True).wait()
    return [part for x in (row, alone) for part in (x.coalesce().indices(), x.coalesce().values(), list(x.shape))]


def broadcast_reduce():
    rank, size, *_ = here()
    found = []
    for root in range(size):
        x = numbers(2, 2, seed=root)
        dist.broadcast(x, src=root)
        y = numbers(3, seed=root)
        dist.reduce(y, root, Op.MAX)
        z = numbers(3, seed=root)
        dist.broadcast(z, group_src=root)
        found += [x, z] + [y] * (rank == root)
    return found


def all_gather():
    _, size, *_ = here()
    x = numbers(2, 3)
    outs = [torch.empty(2, 3) for _ in range(size)]
    dist.all_gather(outs, x)
    joined, other = torch.empty(2 * size, 3), torch.empty(2 * size, 3)
    dist.all_gather_into_tensor(joined, x)
    dist.all_gather_into_tensor(other, x + 1)
    return outs, joined, other


def reduce_scatter():
    _, size, *_ = here()
    found = []
    for op in (Op.SUM, Op.MAX):
        x = numbers(2 * size, 3)
        y, z = torch.empty(2, 3), torch.empty(2, 3)
        dist.reduce_scatter(y, [piece.clone() for piece in x.chunk(size)], op)
        dist.reduce_scatter_tensor(z, x, op)
        found += [y, z]
    return found


def gather_scatter():
    rank, size, *_ = here()
    found = []
    for root in range(size):
        mine = numbers(2, 2, seed=root)
        outs = [torch.empty(2, 2) for _ in range(size)] if rank == root else None
        dist.gather(mine, outs, dst=root)
        piece = torch.empty(3)
        dist.scatter(piece, list(numbers(size, 3, seed=root)) if rank == root else None, src=root)
        more = [torch.empty(2, 2) for _ in range(size)] if rank == root else None
        dist.gather(mine, more, group_dst=root)
        found += [outs, piece, more]
    return found


def all_to_all_single():
    rank, size, *_ = here()
    even = torch.empty(2 * size, 3)
    dist.all_to_all_single(even, numbers(2 * size, 3))
    sent, coming = [(rank + 2 * j) % 3 for j in range(size)], [(j + 2 * rank) % 3 for j in range(size)]
    uneven = torch.empty(sum(coming), 2)
    dist.all_to_all_single(uneven, numbers(sum(sent), 2), coming, sent)
    return even, uneven


def all_to_all():
    """Lists of tensors; for gloo, all of one shape."""
    rank, size, *_ = here()
    pieces = [numbers(3, 2, seed=j) for j in range(size)]
    outs = [torch.empty(3, 2) for j in range(size)]
    dist.all_to_all(outs, pieces)
    return outs


def objects():
    rank, size, *_ = here()
    mine = {"rank": rank, "words": ["a"] * rank, "x": numbers(2)}
    everything, gathered, piece = [None] * size, [None] * size if rank == 1 else None, [None]
    dist.all_gather_object(everything, mine)
    dist.gather_object(mine, gathered, dst=1)
    shared = [mine, rank] if rank == 1 else [None, None]
    dist.broadcast_object_list(shared, src=1)
    dist.scatter_object_list(piece, [f"for {r}" for r in range(size)] if rank == 0 else None, src=0)
    if rank == 0:
        dist.send_object_list([mine, "sent"], dst=1)
    got = [None, None]
    if rank == 1:
        dist.recv_object_list(got, src=0)
    return everything, gathered, shared, piece, got


def messages():
    """Tags out of order; a ring of isend and irecv; what they return."""
    rank, _, following, previous = here()
    x = numbers(3)
    sent = [dist.isend(x + tag, following, tag=tag) for tag in range(3)]
    outs = [torch.empty(3) for _ in range(3)]
    late = [dist.irecv(outs[tag], previous, tag=tag) for tag in (2, 0)]
    source = dist.recv(outs[1], previous, tag=1)
    for work in [*late, *sent]:
        work.wait()
    if rank == 0:
        dist.send(x, group_dst=1)
    if rank == 1:
        dist.recv(outs[0], group_src=0)
    return outs, source, [work.is_completed() for work in late]


def batched_messages():
    rank, _, following, previous = here()
    a, b = torch.empty(2), torch.empty(4)
    x, y = numbers(2), numbers(4, seed=1)
    # Two processes are each other's neighbor on both sides: only the tag then says which message is meant.
    batch = [
        dist.P2POp(dist.isend, x, following, tag=1), dist.P2POp(dist.irecv, b, following, tag=2),
        dist.P2POp(dist.irecv, a, previous, tag=1), dist.P2POp(dist.isend, y, group_peer=previous, tag=2),
    ]  # fmt: skip
    for work in dist.batch_isend_irecv(batch):
        work.wait()
    return a, b


def coalesced():
    _, size, *_ = here()
    xs = [numbers(2), numbers(3, 2)]
    with _coalescing_manager():
        for x in xs:
            dist.all_reduce(x)
    ys = [numbers(2 * size), numbers(size)]
    outs = [torch.empty(2), torch.empty(1)]
    with _coalescing_manager(async_ops=True) as manager:
        for out, y in zip(outs, ys, strict=True):
            dist.reduce_scatter_tensor(out, y)
    manager.wait()
    gathered = [torch.empty(2 * size), torch.empty(3 * size, 2)]
    with _coalescing_manager():
        for out, x in zip(gathered, xs, strict=True):
            dist.all_gather_into_tensor(out, x)
    more = [numbers(2), numbers(3)]
    dist.all_reduce_coalesced(more)
    several = [numbers(2), numbers(3, 2, dtype=torch.complex64), numbers(0)]
    now, later = ([[torch.empty_like(x) for x in several] for _ in range(size)] for _ in range(2))
    dist.all_gather_coalesced(now, several)
    dist.all_gather_coalesced(later, several, async_op=True).wait()
    return xs, outs, gathered, more, now, later


def later():
    """Several started, waited for in another order."""
    _, size, *_ = here()
    x, y, z, joined = numbers(3), numbers(2, 2), numbers(2), torch.empty(2 * size)
    out, outs = torch.empty(1), [torch.empty(2) for _ in range(size)]
    first = dist.all_reduce(x, async_op=True)
    second = dist.broadcast(y, 0, async_op=True)
    third = dist.all_gather_into_tensor(joined, z, async_op=True)
    fourth = dist.reduce_scatter_tensor(out, numbers(size), async_op=True)
    fifth = dist.all_gather(outs, z, async_op=True)
    sixth = dist.barrier(async_op=True)
    answers = [work.wait() for work in (sixth, third, first, fifth, second, fourth)]
    doubled = dist.all_reduce(numbers(2), async_op=True).get_future().then(lambda future: future.value()[0] * 2)
    return x, y, joined, out, outs, answers, first.is_completed(), doubled.wait()


def written():
    """What the works and the futures say that they have written into: always a list of tensors."""
    rank, size, *_ = here()

    def started():
        outs, pieces = ([torch.empty(2) for _ in range(size)] for _ in range(2))
        to_rank_0 = pieces if rank == 0 else None
        from_rank_0 = [numbers(2) for _ in range(size)] if rank == 0 else None
        yield dist.all_reduce(numbers(2), async_op=True)
        yield dist.all_gather(outs, numbers(2), async_op=True)
        yield dist.all_to_all_single(torch.empty(size), numbers(size), async_op=True)
        yield dist.all_to_all(outs, [numbers(2) for _ in range(size)], async_op=True)
        yield dist.broadcast(numbers(2), 0, async_op=True)
        yield dist.reduce(numbers(2), 0, async_op=True)
        yield dist.gather(numbers(2), to_rank_0, 0, async_op=True)
        yield dist.scatter(torch.empty(2), from_rank_0, 0, async_op=True)

    results = [work.result() for work in started() if work.wait()]
    values = [work.get_future().wait() for work in started()]
    if rank:  # what a reduce leaves on the others is not said
        del results[5], values[5]
    return results, values


def groups():
    """Pairs, single ones, of uneven sizes; those who are not members; the names of ranks within."""
    rank, size, *_ = here()
    last = size - 1
    pairs = [dist.new_group([a, a + 1]) for a in range(0, size, 2)]
    ends = dist.new_group([0, last])
    alone = dist.new_group([1])
    mine = pairs[rank // 2]
    x = numbers(2)
    dist.all_reduce(x, group=mine)
    y = numbers(2)
    dist.broadcast(y, group=mine, group_src=1)
    dist.all_reduce(y, group=alone)  # nothing but for rank 1
    names = [dist.get_rank(ends), dist.get_world_size(ends), dist.get_process_group_ranks(mine)]
    if rank in (0, last):
        dist.all_reduce(x, group=ends)
        names += [dist.get_group_rank(ends, last), dist.get_global_rank(ends, 1)]
        if rank == 0:
            dist.send(x, group=ends, group_dst=1)
        else:
            dist.recv(x, group=ends, group_src=0)
    dist.barrier(group=mine)
    return x, y, names, alone is dist.GroupMember.NON_GROUP_MEMBER


def subgroups():
    rank, size, *_ = here()
    own, _ = dist.new_subgroups(2)
    by_list, _ = dist.new_subgroups_by_enumeration([list(range(0, size, 2)), list(range(1, size, 2))])
    x = numbers(2)
    for group in (own, by_list):
        dist.all_reduce(x, group=group)
    return x, [dist.get_process_group_ranks(group) for group in (own, by_list)]


def functionals():
    rank, size, following, previous = here()
    x = numbers(2 * size, size)
    everyone = dist.group.WORLD
    found = [functional.all_reduce(x, "sum", everyone), functional.all_reduce(x, "max", list(range(size)))]
    found += [functional.broadcast(x, 1, everyone), functional.all_gather_tensor(x, 1, everyone)]
    found += [functional.reduce_scatter_tensor(x, "sum", 1, everyone)]
    found += functional.all_reduce_coalesced([x, x[:1]], "sum", everyone)
    found += functional.all_gather_into_tensor_coalesced([x, x[:1]], everyone)
    found += functional.reduce_scatter_tensor_coalesced([x, x], "sum", [0, 1], everyone)
    found += [functional.permute_tensor(x.flatten(), [(r + 1) % size for r in range(size)], everyone)]
    sent, coming = [(rank + 2 * j) % 3 for j in range(size)], [(j + 2 * rank) % 3 for j in range(size)]
    found += [functional.all_to_all_single(numbers(sum(sent), 2), coming, sent, everyone)]
    return [y.wait() if isinstance(y, functional.AsyncCollectiveTensor) else y for y in found]


def functionals_backward():
    rank, size, *_ = here()
    everyone = dist.group.WORLD
    sent, coming = [(rank + 2 * j) % 3 for j in range(size)], [(j + 2 * rank) % 3 for j in range(size)]
    found = []
    for call in (
        lambda x: functional.all_gather_tensor_autograd(x, 0, everyone),
        lambda x: functional.reduce_scatter_tensor_autograd(x, "sum", 0, everyone),
        lambda x: functional.all_to_all_single_autograd(x[: sum(sent)], coming, sent, everyone),
        lambda x: functional.all_reduce(x, "sum", everyone),
    ):
        x = numbers(3 * size, 2).requires_grad_()
        y = call(x)
        (y * numbers(*y.shape, seed=1)).sum().backward()
        found += [y.detach(), x.grad]
    return [y.wait() if isinstance(y, functional.AsyncCollectiveTensor) else y for y in found]


def nn_functional():
    rank, size, *_ = here()
    sent, coming = [(rank + 2 * j) % 3 for j in range(size)], [(j + 2 * rank) % 3 for j in range(size)]
    found = []
    for call in (
        lambda x: differentiable.all_reduce(x),
        lambda x: differentiable.broadcast(x, 1),
        lambda x: torch.stack(differentiable.all_gather(x)),
        lambda x: differentiable.reduce_scatter(torch.empty(3, 2), [piece.contiguous() for piece in x.chunk(size)]),
        lambda x: differentiable.all_to_all_single(torch.empty(sum(coming), 2), x[: sum(sent)], coming, sent),
        lambda x: differentiable.scatter([piece.contiguous() for piece in x.chunk(size)], 1),
        lambda x: torch.stack(differentiable.gather(x, 0)) * (rank == 0),
        lambda x: differentiable.reduce(x, 1) * (rank == 1),
    ):
        x = numbers(3 * size, 2).requires_grad_()
        y = call(x)
        (y * numbers(*y.shape, seed=1)).sum().backward()
        found += [y.detach(), x.grad]
    return found


def meshes():
    rank, size, *_ = here()
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("dp", "tp"))
    x = numbers(3)
    names = [mesh.get_coordinate(), mesh.get_local_rank("tp"), mesh["dp"].size(), mesh["tp"].mesh.tolist()]
    for group in (mesh.get_group("tp"), mesh["dp"].get_group(), mesh["dp", "tp"]._flatten("all").get_group()):
        dist.all_reduce(x, group=group)
        names.append((dist.get_rank(group), dist.get_process_group_ranks(group)))
    return x, names, str(mesh), mesh == init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("dp", "tp"))


def names():
    """What a process knows of itself and of its groups."""
    rank, size, *_ = here()
    everyone = dist.group.WORLD
    known = [rank, size, dist.is_initialized(), dist.get_backend(), dist.get_backend_config(), dist.is_available()]
    known += [everyone.rank(), everyone.size(), dist.get_process_group_ranks(None)]
    known += [dist.get_default_backend_for_device("cpu"), dist.get_node_local_rank(fallback_rank=rank)]
    group = dist.new_group([0, 1], group_desc="two")
    if rank < 2:
        known += [group.group_desc, dist.get_backend(group), group.size()]
    return known


def stores():
    """The store behind the groups: who waits for a key gets what another sets."""
    rank, size, *_ = here()
    store = dist.distributed_c10d._get_default_store()
    if rank == 0:
        store.set("key", "value")
    value, count = store.get("key"), None
    store.add("count", rank + 1)
    dist.barrier()
    count = store.add("count", 0)
    store.wait(["key", "count"])
    dist.barrier()
    gone = store.delete_key("count") if rank == 1 else None
    changed = store.compare_set("key", "value", "other") if rank == 1 else None
    prefixed = dist.PrefixStore("mine", store)
    prefixed.set(f"of {rank}", str(rank))
    dist.barrier()
    return value, count, gone, changed, prefixed.get(f"of {size - 1}"), store.check(["key"]), store.check(["no"])


def futures():
    """Several together, which C++ waits for."""
    xs = [numbers(2), numbers(3, seed=1)]
    begun = [dist.all_reduce(x, async_op=True).get_future() for x in xs]
    together = torch.futures.collect_all(begun).wait()
    more = torch.futures.wait_all([dist.all_reduce(x, async_op=True).get_future() for x in xs])
    return xs, len(together), len(more)


def ranks_alone():
    """Some call what others do not: only the members of a group need to come."""
    rank, size, *_ = here()
    group = dist.new_group([0, 1])
    x = numbers(2)
    for _ in range(rank + 1 if rank > 1 else 3):
        if rank < 2:
            dist.all_reduce(x, group=group)
    dist.barrier()
    return x


ROWS = [
    all_reduce, of_every_form, sparse, broadcast_reduce, all_gather, reduce_scatter, gather_scatter, all_to_all_single,
    all_to_all, objects, messages, batched_messages, coalesced, later, written, groups, subgroups, functionals,
    functionals_backward, nn_functional, meshes, names, stores, futures, ranks_alone,
]  # fmt: skip
