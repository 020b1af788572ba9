"""Which heads a device holds, pinned by hand, and the projection that holds them."""

import pytest
import torch
from parallel.dense_transformer import HIDDEN, charged, double, refuses  # noqa: F401
from torch import nn

from lib import FusedHeads, ParallelQKV, load_dense
from lib.devices import Cluster
from lib.parallel.attention.heads import check_heads, kv_copies

# (heads, kv_heads, devices)
LAYOUTS = [
    (12, 12, 1),
    (12, 12, 4),
    (12, 4, 2),
    (12, 4, 4),
    (12, 2, 4),
    (12, 2, 6),
    (12, 1, 12),
    (12, 3, 12),
    (6, 3, 3),
]


def test_a_device_gets_its_heads_queries_keys_and_values():
    fused = torch.arange(3 * 4 * 2)  # 4 heads of size 2: queries 0-7, keys 8-15, values 16-23
    layout = FusedHeads(heads=4, kv_heads=4)
    assert layout.piece(fused, 2, 0).tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]
    assert layout.piece(fused, 2, 1).tolist() == [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23]


def test_with_fewer_heads_of_keys_and_values_neighbors_hold_the_same():
    fused = torch.arange(4 + 2 + 2)  # 4 heads of size 1: queries 0-3, keys 4 and 5, values 6 and 7
    pieces = [FusedHeads(heads=4, kv_heads=2).piece(fused, 4, rank).tolist() for rank in range(4)]
    assert pieces == [[0, 4, 6], [1, 4, 6], [2, 5, 7], [3, 5, 7]]
    assert [FusedHeads(heads=4, kv_heads=2).piece(fused, 2, rank).tolist() for rank in range(2)] == [
        [0, 1, 4, 6],
        [2, 3, 5, 7],
    ]


def test_how_many_devices_hold_the_same():
    assert [kv_copies(4, devices) for devices in (1, 2, 4, 8, 12)] == [1, 1, 1, 2, 3]


@pytest.mark.parametrize(("heads", "kv_heads", "size"), LAYOUTS)
def test_the_pieces_make_the_whole_again(heads, kv_heads, size):
    layout = FusedHeads(heads, kv_heads)
    for whole in (torch.randn((heads + 2 * kv_heads) * 2, 3), torch.randn((heads + 2 * kv_heads) * 2)):
        assert torch.equal(layout.whole([layout.piece(whole, size, rank) for rank in range(size)]), whole)


def test_a_whole_that_is_not_made_of_such_heads():
    with pytest.raises(ValueError, match=r"shape \(11, 3\) cannot be divided into 4 heads of queries and 2 x 1 of"):
        FusedHeads(4, 1).piece(torch.ones(11, 3), 2, 0)


# ---- the projection ----


@pytest.mark.parametrize(("heads", "kv_heads", "size"), LAYOUTS)
def test_each_device_projects_to_its_own_heads(heads, kv_heads, size):
    d = HIDDEN // heads
    dense, x = nn.Linear(HIDDEN, (heads + 2 * kv_heads) * d), torch.randn(2, 5, HIDDEN)
    blocks = dense(x).detach().split([heads * d, kv_heads * d, kv_heads * d], -1)
    q, k, v = (block.unflatten(-1, (-1, d)) for block in blocks)  # (batch, S, heads, d)

    @torch.no_grad()
    def program(group):
        qkv = ParallelQKV(HIDDEN, heads, kv_heads, group)
        load_dense(qkv, dense.state_dict(), group)
        return qkv.widths, qkv(x)

    for rank, (widths, y) in enumerate(Cluster(size).run(program)):
        queries = range(rank * heads // size, (rank + 1) * heads // size)
        common = sorted({head * kv_heads // heads for head in queries})  # those that these queries look at
        assert widths == (len(queries) * d, len(common) * d)
        expected = torch.cat([q[:, :, list(queries)], k[:, :, common], v[:, :, common]], 2).flatten(2)
        assert torch.allclose(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), LAYOUTS)
def test_initialized_as_the_piece_of_the_dense_projection(heads, kv_heads, size):
    torch.manual_seed(4)
    dense = nn.Linear(HIDDEN, (heads + 2 * kv_heads) * HIDDEN // heads)

    def program(group):
        torch.manual_seed(4)
        return ParallelQKV(HIDDEN, heads, kv_heads, group)

    layout = FusedHeads(heads, kv_heads)
    for rank, qkv in enumerate(Cluster(size).run(program)):
        assert torch.equal(qkv.weight, layout.piece(dense.weight, size, rank))
        assert torch.equal(qkv.bias, layout.piece(dense.bias, size, rank))


@pytest.mark.parametrize(("kv_heads", "copies"), [(1, 4), (2, 2), (4, 1), (12, 1)])
def test_the_gradients_of_copies_are_added_over_those_who_hold_them(kv_heads, copies):
    cluster, rows = Cluster(4), 2 * max(1, kv_heads // 4) * 2  # of keys and values, on one device

    def program(group):
        qkv = ParallelQKV(HIDDEN, 12, kv_heads, group)
        qkv(torch.ones(1, 3, HIDDEN)).mul(1.0 + group.rank).sum().backward()
        return qkv.bias.grad

    for rank, grad in enumerate(cluster.run(program)):
        neighbors = range(rank // copies * copies, (rank // copies + 1) * copies)
        assert grad[:6].tolist() == [3 * (1 + rank)] * 6
        assert grad[6:].tolist() == [3 * sum(1 + other for other in neighbors)] * rows
    sent = 2 * (copies - 1) * rows * (HIDDEN + 1) * 8 // copies
    assert charged(cluster) == ({} if copies == 1 else {"all_reduce": (2, sent)})


def test_without_that_the_copies_would_drift_apart():
    """The same, with a weight that goes past `copy_to`: each device sees only what its own queries did."""

    def program(group):
        qkv = ParallelQKV(HIDDEN, 12, 1, group)
        y = qkv.enter(torch.ones(1, 3, HIDDEN), qkv.weight, qkv.bias)
        y.mul(1.0 + group.rank).sum().backward()
        return qkv.bias.grad[6:].tolist()

    assert Cluster(4).run(program) == [[3.0 * (1 + rank)] * 4 for rank in range(4)]


# ---- refusals ----


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((10, 4, 4, 1), "a hidden size of 10 cannot be divided into 4 heads"),
        ((12, 12, 5, 1), "12 heads cannot share 5 heads of keys and values: it must divide 12"),
        ((12, 12, 12, 5), "12 heads cannot be split over 5 devices: possible are 1, 2, 3, 4, 6, 12"),
        (
            (12, 12, 4, 6),
            "4 heads of keys and values cannot be laid out over 6 devices: one of the two numbers must divide",
        ),
        ((12, 12, 6, 4), "6 heads of keys and values cannot be laid out over 4 devices"),
        ((12, 0, 1, 1), "hidden=12, heads=0, kv_heads=1: each must be at least 1"),
        ((12, 12, 0, 1), "hidden=12, heads=12, kv_heads=0: each must be at least 1"),
        ((0, 12, 12, 1), "hidden=0, heads=12, kv_heads=12: each must be at least 1"),
    ],
)
def test_heads_that_do_not_fit(numbers, message):
    hidden, heads, kv_heads, size = numbers
    refuses([message], lambda group: ParallelQKV(hidden, heads, kv_heads, group), size)


@pytest.mark.parametrize("devices", [0, -2])
def test_heads_need_a_device(devices):
    """Formulas ask, which have no group."""
    with pytest.raises(ValueError, match=f"12 heads cannot be split over {devices} devices: possible are 1, 2, 3, 4"):
        check_heads(12, 12, 12, devices)


@pytest.mark.parametrize("numbers", [(12, 12, 4, 4), (12, 12, 4, 2), (12, 12, 2, 4), (12, 12, 12, 12), (12, 12, 1, 12)])
def test_heads_that_fit(numbers):
    check_heads(*numbers)
