"""A mesh is `numpy.arange(P).reshape(...)`: coordinates, and the sub-group along each axis."""

import numpy as np
import pytest
import torch
from devices.messages import says

from lib.devices import Cluster, Mesh

GRIDS = [{"dp": 2, "tp": 3}, {"dp": 2, "pp": 3, "tp": 2}, {"tp": 4}, {"a": 1, "b": 5, "c": 1}, {"x": 3, "y": 1}]


@pytest.mark.parametrize("axes", GRIDS, ids=str)
def test_coordinates_and_sub_groups(axes):
    grid = np.arange(np.prod(list(axes.values()))).reshape(*axes.values())

    def program(group):
        mesh = Mesh(group, **axes)
        groups = {name: getattr(mesh, name) for name in axes}
        gathered = {name: sub.all_gather(torch.tensor([group.rank])).tolist() for name, sub in groups.items()}
        return mesh, groups, gathered

    for rank, (mesh, groups, gathered) in enumerate(Cluster(grid.size).run(program)):
        place = [int(i[0]) for i in np.where(grid == rank)]
        assert mesh.coordinates == dict(zip(axes, place, strict=True))
        assert mesh.axes == axes
        for number, name in enumerate(axes):
            line = tuple(place[:number] + [slice(None)] + place[number + 1 :])
            assert groups[name].ranks == tuple(grid[line].tolist())
            assert groups[name].rank == place[number]
            assert gathered[name] == grid[line].tolist()


def test_a_mesh_inside_of_an_axis_of_a_mesh():
    def program(group):
        outer = Mesh(group, dp=2, tp=4)
        inner = Mesh(outer.tp, row=2, column=2)
        return inner.coordinates, inner.row.ranks, inner.column.ranks

    outputs = Cluster(8).run(program)
    assert outputs[6] == ({"row": 1, "column": 0}, (4, 6), (6, 7))


def test_two_axes_reduce_to_the_sum_over_all():
    def program(group):
        mesh = Mesh(group, dp=2, tp=3)
        return float(mesh.dp.all_reduce(mesh.tp.all_reduce(torch.tensor(float(group.rank)))))

    assert Cluster(6).run(program) == [15.0] * 6


def test_repr_and_the_group_it_was_cut_from():
    def program(group):
        mesh = Mesh(group, dp=2, tp=2)
        return repr(mesh), mesh.group is group

    assert Cluster(4).run(program)[2] == ("Mesh(dp=1 of 2, tp=0 of 2)", True)


@pytest.mark.parametrize(
    ("axes", "fragments"),
    [
        ({"dp": 2, "tp": 3}, ["on rank 0", "dp=2 x tp=3 needs 6 devices", "the group has 4", "must multiply"]),
        ({}, ["no axes", "the group has 4"]),
        ({"dp": 4, "tp": 0}, ["tp=0 is not a number of devices", "at least 1"]),
        ({"dp": -4, "tp": -1}, ["dp=-4 is not a number of devices"]),
        ({"dp": 2.0, "tp": 2}, ["dp=2.0 is not a number of devices", "integer"]),
        ({"dp": True, "tp": 4}, ["dp=True is not a number of devices"]),
    ],
    ids=str,
)
def test_a_grid_that_does_not_fit_is_refused(axes, fragments):
    with says(ValueError, *fragments):
        Cluster(4).run(lambda group: Mesh(group, **axes))


def test_an_axis_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(AttributeError, match=r"no axis 'pp'; its axes are dp, tp"):
        Cluster(2).run(lambda group: Mesh(group, dp=1, tp=2).pp)
