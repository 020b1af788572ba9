"""On the meta device there are shapes and no data; the verbs know them all the same."""

import torch
from devices.inputs import Case, cases
from hypothesis import given

from lib.devices import Cluster


@given(cases(free=True, dtypes=[torch.float32, torch.int64]))
def test_shapes_and_traffic_are_those_of_real_tensors(case: Case):
    def program(group, tensors):
        x, dim = tensors[group.rank], case.dim
        y = group.all_gather(x, dim)
        group.send(y, dst=(group.rank + 1) % group.size)
        results = [
            y,
            group.gather(x, dim),
            group.all_reduce(y),
            group.reduce(y),
            group.reduce_scatter(y, dim),
            group.all_to_all(y, dim, case.other_dim),
            group.broadcast(y),
            group.scatter(y, dim),
            group.recv(src=(group.rank - 1) % group.size),
        ]
        shapes = [None if z is None else (tuple(z.shape), z.dtype) for z in results]
        return shapes, {z.device.type for z in results if z is not None}

    cluster, meta_cluster = Cluster(case.size), Cluster(case.size)
    real = cluster.run(program, case.tensors)
    meta = meta_cluster.run(program, [x.to("meta") for x in case.tensors])
    assert [shapes for shapes, _ in meta] == [shapes for shapes, _ in real]
    assert all(devices == {"meta"} for _, devices in meta)
    assert meta_cluster.meters.rows() == cluster.meters.rows()


def test_a_layer_that_no_laptop_holds():
    def program(group):
        with torch.device("meta"):
            x = torch.empty(2048, 12288)
            w = torch.empty(12288, 4 * 12288 // group.size)
        return group.all_gather(x @ w, dim=1)

    outputs = Cluster(8).run(program)
    assert {tuple(y.shape) for y in outputs} == {(2048, 4 * 12288)}
