"""Programs that talk in every way a Group can. In a file of their own, which other processes can import."""

import torch

from lib.devices import Mesh, different_random, same_random
from lib.devices.algorithms import halving_doubling, ring, tree

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.bool,
    torch.complex128,
]


def numbers(group, *shape, dtype=torch.float64):
    """Whole numbers, others on each device: exact in any dtype, in any order of additions."""
    random = torch.Generator("cpu").manual_seed(group.rank)
    x = torch.randint(0, 6, shape, generator=random, device="cpu").to(torch.get_default_device())
    if dtype == torch.bool:
        return x > 2
    return (x + 1j * x.flip(0)).to(dtype) if dtype.is_complex else x.to(dtype)


def every_verb(group, shape, dtype):
    """All verbs, even pieces and uneven ones. The layouts in memory differ, and some are views."""
    x = numbers(group, *shape, dtype=dtype)
    if group.rank % 2:
        x = x.mT.contiguous().mT.conj()  # the conjugate of complex numbers is not written down, but remembered
    before = x.clone()
    ops = ("sum",) if dtype.is_complex else ("sum", "max", "min")
    mine = x.narrow(1, 0, min(group.rank, shape[1]))  # other lengths on other devices, none on the first
    last = group.size - 1
    here = x if group.rank == last else None
    found = [verb(x, op=op) for verb in (group.all_reduce, group.reduce_scatter, group.reduce) for op in ops]
    found += [group.reduce_scatter(x, -1), group.reduce(x, last), group.all_gather(x), group.all_gather(x, -1)]
    found += [group.all_to_all(x, 0, 1), group.all_to_all(x, 1, 1), group.all_to_all(mine, 0, 1)]
    found += [group.all_gather(mine, 1), group.gather(mine, -1, last), group.gather(x)]
    found += [group.broadcast(here, last), group.broadcast(x), group.scatter(here, 1, last), group.scatter(x, -2)]
    group.barrier()
    results = [None if y is None else y.clone() for y in found]
    for y in found:
        if y is not None:
            y.zero_()  # a result is this device's own
    assert x.is_meta or torch.equal(x, before)
    return results


def single_numbers(group):
    x = torch.tensor(float(group.rank + 1))
    return group.all_reduce(x), group.broadcast(x, group.size - 1), group.reduce(x, 0, "max")


def empty_tensors(group):
    x = torch.empty(0, 3)
    whole = group.all_reduce(x), group.all_gather(x), group.reduce_scatter(x, 1), group.broadcast(x), group.gather(x)
    group.send(x, (group.rank + 1) % group.size)
    return [*whole, group.all_to_all(x, 1, 0), group.recv((group.rank - 1) % group.size)]


def messages(group):
    """Rings in which all send first, tags out of order, messages of all kinds, and one to oneself."""
    following, previous = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    x = numbers(group, 300, 200)
    group.send(x, following)
    x.zero_()  # the sender's own affair
    found = [group.recv(previous)]
    kinds = [numbers(group, 2, 3, dtype=dtype) for dtype in DTYPES] + [torch.tensor(2.5), x.mT, x[::7, ::3]]
    kinds.append((numbers(group, 2, 2, dtype=torch.complex128)).conj().imag)  # a minus sign that is remembered
    for tag, some in enumerate(kinds):
        group.send(some, following, tag)
        group.send(some[None], following, tag)
    found += [group.recv(previous, tag) for tag in reversed(range(len(kinds))) for _ in range(2)]
    x = torch.tensor([float(group.rank)])
    group.send(x, group.rank, tag=-5)
    x.zero_()
    return [*found, group.recv(group.rank, tag=-5)]


def hand_made(group):
    x = numbers(group, 4, 5)
    return [algorithm(group, x) for algorithm in ((ring, tree) if group.size == 3 else (ring, tree, halving_doubling))]


def handles(group):
    """Several in flight, waited for in another order; a call that waits must queue up behind them."""
    x = numbers(group, 40, 30)
    first = group.all_reduce(x, async_op=True)
    second = group.reduce_scatter(x + 1, async_op=True)
    third = group.broadcast(x if group.rank == 0 else None, async_op=True)
    at_once = group.all_gather(x)
    nothing = group.reduce(x, dst=0, async_op=True)
    return third.wait(), at_once, first.wait(), nothing.wait(), second.wait()


def handles_do_not_block(group):
    """A device starts a collective and goes on; the others come only when they have heard of it."""
    x = torch.ones(3)
    if group.rank == 0:
        started = group.all_reduce(x, async_op=True)
        for other in range(1, group.size):
            group.send(x, other)
        return started.wait()
    group.recv(0)
    return group.all_reduce(x)


def groups_in_another_order(group):
    """Two groups of the same devices: one starts the calls in another order than the other waits for them."""
    one, other = group.split(1), group.split(1)
    x = numbers(group, 4)
    first, second = (one, other) if group.rank else (other, one)
    started = [(g is one, g.all_reduce(x + (g is one), async_op=True)) for g in (first, second)]
    results = {which: handle.wait() for which, handle in started}
    return results[True], results[False]


def groups(group):
    """Sub-groups of sub-groups, in any order of ranks; some devices are in none."""
    x = numbers(group, 4, 6)
    order = list(reversed(range(group.size)))
    backwards = group.split([order])
    found = [backwards.all_gather(x), backwards.reduce_scatter(x, 1), backwards.rank]
    if group.rank < 2:
        pair = group.split([[1, 0]])
        found += [pair.scatter(x if pair.rank == 0 else None), pair.split(2).all_reduce(x)]
        alike = [pair, group.split([[1, 0]]), pair.split(1)]  # the same devices; each has messages of its own
        for number, some in enumerate(alike):
            some.send(x + number, 1 - some.rank)
        found += [some.recv(1 - some.rank) for some in reversed(alike)]
    else:
        assert [group.split([[1, 0]]).rank for _ in range(2)] == [None, None]
    some = group.split([[0], list(range(1, group.size))])
    return [*found, some.all_reduce(x), some.gather(x, 1, some.size - 1)]


def meshes(group):
    mesh = Mesh(group, dp=2, tp=group.size // 2)
    x = numbers(group, 2, 4)
    summed = mesh.dp.all_reduce(x)
    return mesh.coordinates, mesh.tp.all_gather(summed, 1), mesh.dp.ranks, mesh.tp.ranks


def streams(group):
    found = [torch.rand(2)]
    with different_random(group):
        found.append(torch.rand(2))
    if group.rank:
        torch.rand(3)
    with same_random(group):
        found.append(torch.rand(2))
    return [*found, torch.rand(1)]


def modes(group):
    return torch.is_grad_enabled(), str(torch.zeros(1).dtype), torch.zeros(1).device.type


def threads(group):
    return torch.get_num_threads()


def every_verb_in_every_dtype(group):
    shapes = {torch.float64: [(12, 12), (5, 3), (1, 2)]}  # fewer for the other dtypes
    dtypes = DTYPES if group.size <= 2 else DTYPES[::4]  # to carry them, it is all the same between how many
    return [every_verb(group, shape, dtype) for dtype in dtypes for shape in shapes.get(dtype, [(5, 12)])]


def recv_later(group):
    """All ask before anyone has sent; what comes last is waited for first, and a late neighbor holds up nobody."""
    x, last = numbers(group, 3), group.size - 1
    waits = [group.recv(src, tag, async_op=True) for src in range(group.size) for tag in (0, 1)]
    if group.rank == last:
        late = group.recv(0, tag=7, async_op=True)  # rank 0 sends it after all else
    for dst in range(group.size):
        group.send(x, dst)
        group.send(x + 10, dst)
        group.send(-x, dst, tag=1)
    found = [wait.wait() for wait in reversed(waits)] + [group.recv(src) for src in range(group.size)]
    if group.rank == 0:
        group.send(x, last, tag=7)
    return [*found, late.wait()] if group.rank == last else found


def uneven_pieces(group):
    """all_to_all with a table of sizes, and with this device's row of it."""
    table = [[(i + 2 * j) % 3 for j in range(group.size)] for i in range(group.size)]
    x = numbers(group, sum(table[group.rank]), 2)
    results = [group.all_to_all(x, sizes=table), group.all_to_all(x, sizes=table[group.rank])]
    return [*results, group.all_to_all(x.T, 1, 1, sizes=table, async_op=True).wait()]


def everything(group):
    return [
        every_verb_in_every_dtype(group),
        everything_else(group),
        meshes(group) if group.size % 2 == 0 else None,
    ]


def everything_else(group):
    programs = [single_numbers, empty_tensors, messages, hand_made, handles, groups, streams]
    programs += [handles_do_not_block, groups_in_another_order, recv_later, uneven_pieces]
    return {program.__name__: program(group) for program in programs}


def strides(group):
    """Of what every verb returns, for tensors that lie in memory in many ways."""
    base = torch.arange(2 * 4 * 6.0).view(2, 4, 6) + group.rank
    forms = {
        "row by row": base,
        "transposed": base.transpose(0, 2),
        "permuted": base.permute(1, 2, 0),
        "channels last": torch.ones(2, 4, 4, 4).contiguous(memory_format=torch.channels_last),
        "with gaps": base[:, ::2],
        "expanded": base[:, :1].expand(2, 4, 6),
        "of length 1": base[:1].transpose(0, 1),
        "empty": base.transpose(0, 2)[:, :0],
    }
    found = {}
    for form, x in forms.items():
        results = {
            "all_reduce": group.all_reduce(x),
            "all_reduce max": group.all_reduce(x, op="max"),
            "broadcast": group.broadcast(x),
            "reduce": group.reduce(x),
            "handle": group.all_reduce(x, async_op=True).wait(),
        }
        for dim in range(2):
            results[f"all_gather {dim}"] = group.all_gather(x, dim)
            results[f"reduce_scatter {dim}"] = group.reduce_scatter(x, dim)
            results[f"scatter {dim}"] = group.scatter(x, dim)
            results[f"gather {dim}"] = group.gather(x, dim)
            results[f"all_to_all {dim}"] = group.all_to_all(x, dim, 0)
        for dst in ((group.rank + 1) % group.size, group.rank):
            group.send(x, dst, tag=dst)
        for src in ((group.rank - 1) % group.size, group.rank):
            results[f"recv from {src}"] = group.recv(src, tag=group.rank)
        found |= {(form, name): (y.shape, y.stride()) for name, y in results.items() if y is not None}
    return found


def not_numbers(group):
    """The largest and the smallest of what is no number on one device is no number on any."""
    x = torch.tensor([1.0, -1.0, 2.0, 0.0])
    x[group.rank] = torch.nan
    found = {}
    for op in ("max", "min", "sum"):
        found[op] = group.all_reduce(x, op), group.reduce_scatter(x, op=op)
    return {op: [y.isnan().tolist() for y in both] for op, both in found.items()}
