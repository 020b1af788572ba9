"""Layers that are split over devices, and those devices treated as if they held copies: refused by name."""

import math

import pytest
import torch
from parallel.small_model import one_thread  # noqa: F401
from torch import nn

from lib import (
    ColumnParallelLinear,
    ExpertGrid,
    FullySharded,
    HybridSharded,
    Mesh,
    MixtureOfExperts,
    RoutingRule,
    RowParallelLinear,
    ShardedOptimizer,
    average_gradients,
    averaging,
    broadcast_parameters,
    check_same_parameters,
    gradient_norm,
    shard_batch,
    sum_gradients,
)
from lib.devices import Cluster
from lib.parallel.sharding.placement import Shard

X = torch.linspace(-1, 1, 32, dtype=torch.float64).view(8, 4).sin()


class Net(nn.Module):
    def __init__(self, group):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = ColumnParallelLinear(4, 6, group), RowParallelLinear(6, 4, group)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.down(self.up(x).tanh()))


def net(group):
    return Net(group).double()


def in_averaging(model, group):
    with averaging(model, group):
        pass


def zero(model, group):
    return ShardedOptimizer(model, group, torch.optim.SGD)


MIXED = [average_gradients, in_averaging, broadcast_parameters, check_same_parameters, FullySharded, zero]


@pytest.mark.parametrize("mix", MIXED, ids=lambda mix: mix.__name__)
def test_pieces_are_not_mixed(mix):
    def program(group, parts):
        model = net(group.split(parts))
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        before = model.up.weight.detach().clone()
        try:
            mix(model, group)
        finally:
            assert parts == 2 or torch.equal(before, model.up.weight), "nothing was changed"

    told = r"on rank \d of 2: up.weight is cut over the devices \(0, 1\), and this group has several of them.*mesh.dp"
    with pytest.raises(ValueError, match=told):
        Cluster(2).run(program, 1)
    Cluster(2).run(program, 2)  # each device has a whole one


def test_experts_are_not_averaged():
    def program(group):
        layer = MixtureOfExperts(4, 6, RoutingRule(4, 2), group)
        layer(torch.randn(3, 4)).sum().backward()
        average_gradients(layer, group)

    with pytest.raises(ValueError, match=r"experts.up is cut .* use sum_gradients"):
        Cluster(2).run(program)


def test_halves_of_experts_are_not_averaged():
    def program(group):
        grid = ExpertGrid.over(group, 1, tensor_parallel=2)
        layer = MixtureOfExperts(4, 6, RoutingRule(4, 2), grid)
        layer(torch.randn(3, 4)).sum().backward()
        average_gradients(layer, group)

    with pytest.raises(ValueError, match=r"experts.up is cut .* use sum_gradients"):
        Cluster(2).run(program)


def after_backward(group, how):
    """This device's model on a grid of 2 x 2, with its gradients, and the mesh."""
    mesh = Mesh(group, dp=2, tp=2)
    model = net(mesh.tp)
    optimizer = zero(model, mesh.dp) if how == "zero" else None
    if how == "sharded":
        FullySharded(model, mesh.dp)
    model(shard_batch(X, mesh.dp)).square().sum(1).mean().backward()
    if how == "zero":
        optimizer.reduce_gradients()
    if how == "copies":
        average_gradients(model, mesh.dp)
    return mesh, model, optimizer.pieces if optimizer else list(model.parameters())


@pytest.mark.parametrize("over", ["dp", "group"])
@pytest.mark.parametrize(("how", "as_list"), [("copies", False), ("zero", True), ("sharded", True), ("sharded", False)])
def test_the_norm_over_another_group_than_that_of_the_layers(how, as_list, over):
    def program(group):
        mesh, model, pieces = after_backward(group, how)
        gradient_norm(pieces if as_list else model, getattr(mesh, over))

    with pytest.raises(ValueError, match=r"on rank \d of \d: up.weight, up.bias, down.weight( ...)? are not cut"):
        Cluster(4).run(program)


@pytest.mark.parametrize("how", ["zero", "sharded"])
def test_the_way_out_that_the_message_names(how):
    def program(group):
        mesh, _, pieces = after_backward(group, how)
        split = [p for p in pieces if p.origin.name in ("up.weight", "up.bias", "down.weight")]
        whole = [p for p in pieces if all(p is not other for other in split)]
        norms = gradient_norm(split, group, sharded=split), gradient_norm(whole, mesh.dp)
        return math.hypot(*norms)

    def dense(group):
        model = net(group)
        model(X).square().sum(1).mean().backward()
        return float(gradient_norm(model, group))

    right = Cluster(1).run(dense)[0]
    assert Cluster(4).run(program) == [pytest.approx(right, rel=1e-12)] * 4


@pytest.mark.parametrize("mix", [average_gradients, in_averaging, broadcast_parameters, check_same_parameters])
def test_pieces_of_fully_sharded_are_not_mixed(mix):
    """They may be equally long, and then nothing else would tell."""

    def program(group):
        model = nn.Linear(4, 2, bias=False)
        FullySharded(model, group)
        model(torch.ones(1, 4)).sum().backward()
        mix(model, group)

    with pytest.raises(ValueError, match=r"weight is cut over the devices \(0, 1\).* FullySharded are means already"):
        Cluster(2).run(program)
    Cluster(1).run(program)


def test_experts_beside_fully_sharded_layers():
    def program(group):
        grid = ExpertGrid.over(group, 1)
        model = nn.Sequential(MixtureOfExperts(4, 6, RoutingRule(4, 2), grid), nn.Linear(4, 2))
        FullySharded(model[1], group)
        model(torch.randn(3, 4)).sum().backward()
        sum_gradients(model, grid)

    with pytest.raises(ValueError, match="sum_gradients on rank . of 2: 1.weight, 1.bias was cut by FullySharded"):
        Cluster(2).run(program)
    Cluster(1).run(program)


def test_the_norm_of_hybrid_pieces_over_all_devices():
    """Each piece is there once in each node: it would count as often as there are nodes."""

    def program(group, over):
        mesh = Mesh(group, replicas=2, shards=2)
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        HybridSharded(model, mesh.shards, mesh.replicas)
        model(torch.ones(1, 4)).square().sum().backward()
        return float(gradient_norm(model, getattr(mesh, over)))

    found = Cluster(4).run(program, "shards")
    assert found == [found[0]] * 4
    with pytest.raises(ValueError, match=r"weight, bias are not cut over the devices \(0, 1, 2, 3\) of this group"):
        Cluster(4).run(program, "group")


def test_a_norm_of_no_gradients_is_refused():
    """After reduce_gradients, ZeRO's pieces have them, and the module has none: nothing would be clipped."""

    def program(group):
        model = nn.Linear(4, 2)
        optimizer = zero(model, group)
        model(torch.ones(1, 4)).sum().backward()
        optimizer.reduce_gradients()
        assert gradient_norm(optimizer.pieces, group) > 0
        gradient_norm(model, group)

    with pytest.raises(ValueError, match="none of the 2 parameters has a gradient.* ShardedOptimizer .* `pieces`"):
        Cluster(2).run(program)


def test_a_layer_under_two_names_is_counted_once():
    def program(group):
        model = nn.Module()
        model.first = model.second = net(group)
        model.second(model.first(X)).square().sum(1).mean().backward()
        return float(gradient_norm(model, group))

    right = Cluster(1).run(program)[0]
    assert Cluster(2).run(program) == [pytest.approx(right, rel=1e-12)] * 2


def test_a_module_some_of_whose_gradients_are_missing():
    def program(group):
        model = nn.Sequential(nn.Linear(4, 2), nn.Linear(4, 2))
        model[0](torch.ones(1, 4)).sum().backward()
        return float(gradient_norm(model, group)), float(gradient_norm(model[0], group))

    found, right = Cluster(2).run(program)[0]
    assert found == right > 0


def test_pieces_of_the_only_replica_are_not_summed_over_the_devices_of_its_layers():
    """The whole LayerNorm is there on each of them, and would count twice."""

    def program(group, over):
        mesh = Mesh(group, dp=1, tp=2)
        model = net(mesh.tp)
        optimizer = zero(model, mesh.dp)
        model(X).square().sum(1).mean().backward()
        optimizer.reduce_gradients()
        gradient_norm(optimizer.pieces, getattr(mesh, over))

    for over in ("tp", "dp"):
        with pytest.raises(ValueError, match="up.weight, up.bias, down.weight( ...)? are not cut over"):
            Cluster(2).run(program, over)


def test_each_parameter_is_named_once():
    def program(group, over):
        mesh, model, _ = after_backward(group, "sharded")
        gradient_norm(model, getattr(mesh, over))

    for over, names in (
        ("dp", "up.weight, up.bias, down.weight"),
        ("group", r"up.weight, up.bias, down.weight \.\.\."),
    ):
        with pytest.raises(ValueError, match=f"{names} are not cut over"):
            Cluster(4).run(program, over)


def test_cut_layers_that_are_other_ones_on_other_devices():
    """As in a pipeline: what is said to be sharded over all of them is."""

    def program(group, said):
        mesh = Mesh(group, pp=2, tp=2)
        layer = ColumnParallelLinear(4, 6, mesh.tp).double()
        for p in layer.parameters():
            p.grad = torch.full_like(p, 1 + mesh.pp.rank)
        return float(gradient_norm(layer, group, sharded=list(layer.parameters()) if said else ()))

    assert Cluster(4).run(program, True) == [pytest.approx(math.sqrt((24 + 6) * (1 + 4)), rel=1e-12)] * 4
    with pytest.raises(ValueError, match="weight, bias are not cut over"):
        Cluster(4).run(program, False)


def test_all_groups_over_which_a_layer_is_cut_are_in_that_of_the_norm():
    def program(group):
        mesh = Mesh(group, experts=2, tensor=2, rest=2)
        layer = nn.Linear(4, 2, bias=False)
        layer.layout, layer.cut_over = {"weight": Shard(0)}, [mesh.experts, mesh.tensor]
        layer.weight.grad = torch.ones(2, 4)
        gradient_norm(layer, group.split([[0, 1, 4, 5], [2, 3, 6, 7]]))  # all that differ in experts or rest

    with pytest.raises(ValueError, match="weight is not cut over"):
        Cluster(8).run(program)
