"""Which gradients are summed over which devices, the norm of all of them, and the factor that is so easily wrong."""

import pytest
import torch
from parallel.expert_layer import HIDDEN, INNER, inputs

from lib import average_gradients
from lib.devices import Cluster
from lib.parallel.experts.gradients import gradient_norm_on, sum_gradients
from lib.parallel.experts.grid import ExpertGrid
from lib.parallel.experts.layer import MixtureOfExperts
from lib.parallel.experts.router import RoutingRule

RULE = RoutingRule(8, 2)


def gradients(group, x, expert_parallel, tensor_parallel=1, averaged=False):
    """The norm of all, the router's gradient, and those of the experts here."""
    grid = ExpertGrid.over(group, expert_parallel, tensor_parallel)
    torch.manual_seed(0)
    layer = MixtureOfExperts(HIDDEN, INNER, RULE, grid, shared=1).double()
    mine = x.tensor_split(grid.batch.size)[grid.batch.rank]
    loss = layer(mine).square().sum(-1).mean()
    if averaged:  # each over its own group, as data parallelism would: the mistake
        loss.backward()
        average_gradients(layer.experts, grid.replicas)
        average_gradients(layer.router, grid.batch)
        average_gradients(layer.shared, grid.batch)
    else:
        (len(mine) / len(x) * loss).backward()
        sum_gradients(layer, grid)
    norm = gradient_norm_on(layer, grid)
    return norm, layer.router.weight.grad, layer.experts.up.grad, layer.experts.layout["up"]


GRIDS = [(4, 4, 1), (4, 2, 1), (6, 3, 1), (8, 2, 2), (8, 1, 4), (4, 2, 2)]


@pytest.mark.parametrize(("size", "experts", "tensor"), GRIDS)
def test_those_of_one_device_and_their_norm(size, experts, tensor):
    x, _ = inputs()
    norm, router, up, _ = Cluster(1).run(gradients, x, 1)[0]
    each = Cluster(size).run(gradients, x, experts, tensor)
    for found in each:
        assert abs(float(found[0] - norm)) < 1e-12
        assert float((found[1] - router).abs().max()) < 1e-12
    assert float((each[0][3].whole([found[2] for found in each]) - up).abs().max()) < 1e-12


@pytest.mark.parametrize(("size", "experts"), [(4, 1), (4, 2), (4, 4), (8, 4)])
def test_averages_over_each_ones_own_group_make_experts_too_large(size, experts):
    x, _ = inputs(tokens=40)  # equally many tokens everywhere
    right, wrong = (Cluster(size).run(gradients, x, experts, averaged=averaged)[0] for averaged in (False, True))
    torch.testing.assert_close(wrong[2], experts * right[2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(wrong[1], right[1], rtol=1e-12, atol=1e-12)


def test_what_is_sent():
    def program(group):
        grid = ExpertGrid.over(group, 2)
        layer = MixtureOfExperts(HIDDEN, INNER, RULE, grid).double()
        for p in layer.parameters():
            p.grad = torch.ones_like(p)
        sum_gradients(layer, grid)

    cluster = Cluster(4)
    cluster.run(program)
    experts, router = 4 * 2 * HIDDEN * INNER, 8 * HIDDEN
    count = cluster.meters.count(0, "all_reduce")
    assert count.calls == 2
    assert count.bytes_sent == 8 * (2 * experts * 1 // 2 + 2 * router * 3 // 4)


def test_a_missing_gradient_is_named():
    def program(group):
        layer = MixtureOfExperts(HIDDEN, INNER, RULE, group)
        sum_gradients(layer, ExpertGrid.over(group))

    with pytest.raises(ValueError, match=r"no gradient reached router.weight, experts.up, experts.down"):
        Cluster(2).run(program)
