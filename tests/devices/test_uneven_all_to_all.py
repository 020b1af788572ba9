"""all_to_all with pieces of any length: tokens to the devices of their experts."""

import numpy as np
import pytest
import torch
from devices.messages import says

from lib.devices import Cluster, Hardware, Link, MismatchError
from lib.parallel.sharding.conjugates import all_to_all

TABLE = [[4, 1, 0], [0, 4, 2], [3, 0, 0]]
X = [10 * r + torch.arange(float(sum(row))).reshape(-1, 1) for r, row in enumerate(TABLE)]
RIGHT = [[0, 1, 2, 3, 20, 21, 22], [4, 10, 11, 12, 13], [14, 15]]


@pytest.mark.parametrize("whole_table", [True, False])
@pytest.mark.parametrize("dim", [0, -1])
def test_pieces_arrive_in_rank_order(whole_table, dim):
    def program(group):
        x = X[group.rank] if dim == 0 else X[group.rank].T
        return group.all_to_all(x, dim, dim, sizes=TABLE if whole_table else TABLE[group.rank]).flatten().tolist()

    cluster = Cluster(3)
    assert cluster.run(program) == RIGHT
    moved = [(cluster.meters.count(r, "all_to_all").bytes_sent, cluster.meters.count(r, "all_to_all").bytes_received)
             for r in range(3)]  # fmt: skip
    assert moved == [(4 * 1, 4 * 3), (4 * 2, 4 * 1), (4 * 3, 4 * 2)]
    assert cluster.meters.count(0, "all_gather").calls == int(not whole_table)


def test_only_what_moves_is_paid_for():
    toy = Hardware("toy", flops=1.0, memory_bandwidth=1.0, memory=1e9, inside=Link(0.0, 1.0))
    cluster = Cluster(3, hardware=toy)
    cluster.run(lambda group: group.all_to_all(X[group.rank], sizes=TABLE))
    assert cluster.trace.total(0, "communication") == 4 * 3  # the most that any device sends or receives


@pytest.mark.parametrize("whole_table", [True, False])
def test_gradients_go_back_where_the_pieces_came_from(whole_table):
    weights = [torch.randn(len(right), 1, dtype=torch.float64) for right in RIGHT]

    def program(group):
        x = X[group.rank].double().requires_grad_()
        y = all_to_all(x, group, 0, 0, sizes=TABLE if whole_table else TABLE[group.rank])
        (y * weights[group.rank]).sum().backward()
        return x.grad.flatten().tolist()

    value = {number: w for right, ws in zip(RIGHT, weights, strict=True) for number, w in zip(right, ws, strict=True)}
    assert Cluster(3).run(program) == [[value[int(n)].item() for n in x] for x in X]


def test_without_data():
    def program(group):
        return tuple(group.all_to_all(X[group.rank].to("meta"), sizes=TABLE).shape)

    assert Cluster(3).run(program) == [(7, 1), (5, 1), (2, 1)]


def test_one_device_alone():
    assert Cluster(1).run(lambda group: group.all_to_all(X[0], sizes=[5]).tolist()) == [X[0].tolist()]


@pytest.mark.parametrize(
    ("sizes", "says_so"),
    [
        ([1, 1, 1], "add up to 3, but this tensor of shape (5, 1) has 5 along dim 0"),
        ([5, 0], "must be 3 lengths"),
        ([6, -1, 0], "at least 0"),
        ([[5, 0, 0]] * 2, "a table of 3 such rows"),
        ([], "must be 3 lengths"),
    ],
)
def test_wrong_sizes_are_refused(sizes, says_so):
    with says(ValueError, "all_to_all on rank 0 of group (0, 1, 2)", says_so):
        Cluster(3).run(lambda group: group.all_to_all(torch.zeros(5, 1), sizes=sizes))


@pytest.mark.parametrize("table", [np.array(TABLE), np.array(TABLE[0]), [np.array(row) for row in TABLE]])
def test_sizes_as_arrays_are_told_the_way(table):
    with says(TypeError, "must be lists of Python integers", "pass sizes.tolist()"):
        Cluster(3).run(lambda group: group.all_to_all(X[0], sizes=table))


def test_the_habit_of_torch_is_told_the_way():
    with says(TypeError, "dim=[4, 1, 0] must be an integer; the lengths of the pieces are sizes=[...]"):
        Cluster(3).run(lambda group: group.all_to_all(X[0], TABLE[0]))


def test_two_dims_with_sizes_are_refused():
    with says(ValueError, "with sizes, split_dim=0 and concat_dim=1 must be the same dim"):
        Cluster(3).run(lambda group: group.all_to_all(X[0], 0, 1, sizes=TABLE[0]))


def test_devices_with_different_tables():
    def program(group):
        table = [list(row) for row in TABLE]
        table[2] = [group.rank, 3 - group.rank, 0]
        return group.all_to_all(X[group.rank], sizes=table)

    with says(MismatchError, "every device must pass the same arguments", "sizes=((4, 1, 0)"):
        Cluster(3).run(program)
