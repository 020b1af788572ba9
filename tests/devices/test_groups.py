"""Smaller groups: split by number and by lists, nested, repeated, interleaved; and the devices left outside."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.devices import Cluster


def total(group):
    """The sum of the cluster ranks of the group's members, by a collective."""
    return int(group.all_reduce(torch.tensor(group.ranks[group.rank])))


def test_split_by_number_makes_groups_of_neighbors():
    def program(group):
        half = group.split(2)
        return half.rank, half.size, half.ranks, total(half)

    assert Cluster(4).run(program) == [(0, 2, (0, 1), 1), (1, 2, (0, 1), 1), (0, 2, (2, 3), 5), (1, 2, (2, 3), 5)]


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_any_number_that_divides(parts):
    def program(group):
        part = group.split(parts)
        return part.ranks

    each = 6 // parts
    assert Cluster(6).run(program) == [tuple(range(r // each * each, r // each * each + each)) for r in range(6)]


def test_the_order_of_a_list_is_the_order_of_the_ranks():
    def program(group):
        part = group.split([[2, 0], [1]])
        return part.rank, part.ranks, part.all_gather(torch.tensor([group.rank])).tolist()

    assert Cluster(3).run(program) == [(1, (2, 0), [2, 0]), (0, (1,), [1]), (0, (2, 0), [2, 0])]


@given(st.data())
def test_any_partition_even_with_devices_left_out(data):
    size = data.draw(st.integers(1, 6))
    order = data.draw(st.permutations(range(size)))
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=3)))
    bounds = list(zip([0, *cuts], [*cuts, size], strict=True))
    lists = [order[a:b] for a, b in bounds]
    if data.draw(st.booleans()):
        lists = lists[1:]  # the first stay outside

    def program(group):
        part = group.split(lists)
        return None if part.rank is None else (part.rank, part.all_gather(torch.tensor([group.rank])).tolist())

    outputs = Cluster(size).run(program)
    for rank, output in enumerate(outputs):
        mine = [part for part in lists if rank in part]
        assert output == ((mine[0].index(rank), mine[0]) if mine else None)


def test_a_split_of_a_split():
    def program(group):
        half = group.split([[5, 4, 3], [2, 1, 0]])
        pair = half.split([[0, 2]])  # ranks of the half, not of the cluster
        return half.ranks, pair.ranks, pair.rank, None if pair.rank is None else total(pair)

    assert Cluster(6).run(program) == [
        ((2, 1, 0), (2, 0), 1, 2),
        ((2, 1, 0), (), None, None),
        ((2, 1, 0), (2, 0), 0, 2),
        ((5, 4, 3), (5, 3), 1, 8),
        ((5, 4, 3), (), None, None),
        ((5, 4, 3), (5, 3), 0, 8),
    ]


def test_the_same_ranks_twice_are_two_groups_that_do_not_mix():
    def program(group):
        one, two = group.split([[0, 1]]), group.split([[0, 1]])
        if group.rank == 0:
            one.send(torch.tensor(1), dst=1)
            two.send(torch.tensor(2), dst=1)
            return None
        return int(two.recv(src=0)), int(one.recv(src=0))

    assert Cluster(2).run(program)[1] == (2, 1)


def test_a_group_of_everybody_is_not_the_group_it_came_from():
    def program(group):
        everybody = group.split(1)
        if group.rank == 0:
            group.send(torch.tensor(1), dst=1)
            everybody.send(torch.tensor(2), dst=1)
            return None
        return int(everybody.recv(src=0)), int(group.recv(src=0))

    assert Cluster(2).run(program)[1] == (2, 1)


def test_groups_that_overlap_may_be_used_by_turns():
    def program(group):
        row = group.split([[0, 1, 2], [3, 4, 5]])
        column = group.split([[0, 3], [1, 4], [2, 5]])
        x = torch.tensor(float(group.rank))
        for _ in range(3):
            x = group.all_reduce(column.all_reduce(row.all_reduce(x)))
        return float(x)

    # Each round adds all six numbers, and then counts the sum six times.
    assert Cluster(6).run(program) == [15.0 * 6 * 36**2] * 6


def test_devices_of_one_group_may_be_ahead_of_another():
    def program(group):
        half = group.split(2)
        for _ in range(3 if group.rank < 2 else 50):
            total(half)
        return total(group)

    assert Cluster(4).run(program) == [6] * 4


def test_different_groups_may_call_different_verbs_at_once():
    def program(group):
        half = group.split(2)
        x = torch.arange(4.0)
        return (half.all_reduce(x) if group.rank < 2 else half.reduce_scatter(x)).tolist()

    assert Cluster(4).run(program) == [[0, 2, 4, 6], [0, 2, 4, 6], [0, 2], [4, 6]]


def test_a_device_left_outside_has_a_group_without_a_rank():
    def program(group):
        pair = group.split([[0, 2]])
        return pair.rank, pair.size, pair.ranks

    assert Cluster(3).run(program) == [(0, 2, (0, 2)), (None, 0, ()), (1, 2, (0, 2))]


def test_src_and_dst_count_within_the_group():
    def program(group):
        pair = group.split([[2, 3], [0, 1]])
        return int(pair.broadcast(torch.tensor(group.rank), src=1))

    assert Cluster(4).run(program) == [1, 1, 3, 3]
