"""Who stands where, and who talks to whom."""

from itertools import product

import pytest
import torch
from parallel.small_model import one_thread  # noqa: F401

from lib import Cluster, Mesh
from lib.parallel.grid.config import ParallelConfig
from lib.parallel.grid.ranks import GridGroups, RankGrid

CONFIG = ParallelConfig(dp=4, pp=2, cp=3, tp=2, ep=2)
GRID = RankGrid.of(CONFIG)


def test_the_last_axis_has_neighbors():
    assert GRID.axes == (("pp", 2), ("edp", 2), ("ep", 2), ("cp", 3), ("tp", 2))
    assert GRID.groups("tp")[:2] == [[0, 1], [2, 3]]
    assert GRID.group_of(0, "cp") == [0, 2, 4]
    assert GRID.group_of(0, "dp") == [0, 6, 12, 18]
    assert GRID.group_of(7, "ep") == [1, 7]
    assert GRID.group_of(47, "pp") == [23, 47]
    other = RankGrid.of(CONFIG, order=("tp", "cp", "dp", "pp"))
    assert other.group_of(0, "pp") == [0, 1]
    assert other.group_of(0, "tp") == [0, 24]


def test_every_group_is_those_that_differ_in_its_axes_alone():
    places = [GRID.coordinates(rank) for rank in range(GRID.size)]
    for axes in [("tp",), ("dp",), ("edp", "cp"), ("edp", "cp", "ep"), ("pp", "tp")]:
        free = {part for axis in axes for part in ({"edp", "ep", "dp"} if axis == "dp" else {axis})}
        free |= {"dp"} if {"edp", "ep"} & free else set()
        groups = GRID.groups(*axes)
        assert sorted(rank for group in groups for rank in group) == list(range(GRID.size))
        for group in groups:
            fixed = {tuple((k, v) for k, v in places[rank].items() if k not in free) for rank in group}
            assert len(fixed) == 1, (axes, group)
            along = [tuple(places[rank][axis] for axis in axes) for rank in group]
            assert along == sorted(along)  # the axis that is named last is the fastest


def test_a_group_of_one_axis_is_that_of_a_mesh():
    def program(group):
        mesh = Mesh(group, pp=2, dp=2, cp=1, tp=2)
        groups = GridGroups(group, RankGrid.of(ParallelConfig(pp=2, dp=2, tp=2)))
        return [(getattr(mesh, axis).ranks, groups.over(axis).ranks) for axis in ("pp", "dp", "cp", "tp")]

    for pairs in Cluster(8).run(program):
        assert all(mine == theirs for mine, theirs in pairs)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: GRID.groups("tensor"), "there is no axis tensor in this grid; its axes are dp, pp, edp, ep, cp, tp"),
        (lambda: GRID.coordinates(48), "there is no rank 48 in a grid of 48: ranks are 0 to 47"),
        (lambda: RankGrid.of(CONFIG, ("dp", "tp", "tp", "pp")), "each once, outermost first"),
        (lambda: RankGrid.of(ParallelConfig(dp=3, ep=2)), "ep=2 must divide dp=3"),
        (lambda: Cluster(2).run(GridGroups, GRID), "needs 48 devices"),
    ],
)
def test_what_is_not_there_is_named(ask, told):
    with pytest.raises(ValueError, match=told):
        ask()


@pytest.mark.parametrize("order", [("pp", "dp", "cp", "tp"), ("tp", "cp", "dp", "pp"), ("dp", "pp", "tp", "cp")])
def test_groups_as_torch_makes_them(order):
    """The oracle: `init_device_mesh`, asked as every rank, in a process group that only pretends."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    config = ParallelConfig(dp=3, pp=2, cp=1, tp=2)
    grid = RankGrid.of(config, order)
    for rank, axis in product(range(grid.size), order):
        torch.distributed.init_process_group("fake", rank=rank, world_size=grid.size, store=FakeStore())
        try:
            mesh = init_device_mesh("cpu", tuple(getattr(config, name) for name in order), mesh_dim_names=order)
            assert mesh[axis].mesh.tolist() == grid.group_of(rank, axis)
        finally:
            torch.distributed.destroy_process_group()
