"""A layer of experts on any grid of devices equals one device, and that a plain loop over tokens and choices."""

import copy
from functools import cache

import pytest
import torch
from parallel.expert_layer import GRIDS, HIDDEN, INNER, assert_same, inputs, one_step, plain_loop, together

from lib import equal_to_one_device, measure
from lib.devices import Cluster
from lib.parallel.experts.layer import MixtureOfExperts
from lib.parallel.experts.overlap import OverlappedExperts
from lib.parallel.experts.router import ExpertChoiceRouter, RoutingRule
from lib.parallel.sharding.placement import Shard

RULE = RoutingRule(6, 2)
VARIANTS = {
    "plain": (RULE, {}),
    "sigmoid, scaled, a gate, shared": (
        RoutingRule(6, 3, "sigmoid", scale=2.5), {"gated": True, "shared": 2}),
    "one choice, not normalized": (RoutingRule(6, 1, normalize=False), {}),
    "every expert": (RoutingRule(6, 6), {}),
    "capacity": (RULE, {"capacity_factor": 0.7}),
}  # fmt: skip
OTHERS = {
    "capacity, gates scaled up": {"capacity_factor": 0.7, "renormalize": True},
    "expert choice": {"router": ExpertChoiceRouter},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_device_equals_a_plain_loop(variant):
    rule, options = VARIANTS[variant]
    assert_same(together(1, rule, *inputs(), **options)[0], plain_loop(rule, *inputs(), **options))


@cache
def on_one_device(variant):
    rule, options = VARIANTS.get(variant) or (RULE, OTHERS[variant])
    return together(1, rule, *inputs(), **options)


@pytest.mark.parametrize(("size", "experts", "tensor"), GRIDS)
@pytest.mark.parametrize("variant", ["plain", "sigmoid, scaled, a gate, shared", "capacity", *OTHERS])
def test_many_devices_equal_one(variant, size, experts, tensor):
    rule, options = VARIANTS.get(variant) or (RULE, OTHERS[variant])
    expected, (alone,), _ = on_one_device(variant)
    found, seen, _ = together(size, rule, *inputs(), expert_parallel=experts, tensor_parallel=tensor, **options)
    assert_same(found, expected)
    assert torch.equal(torch.cat([one.chosen for one in seen[::tensor]]), alone.chosen)  # what is dropped, too
    assert all(torch.equal(one.kept.sum(0), alone.kept[0]) for one in seen)


def test_the_check_of_the_book():
    """Own parts of the output and of the experts' gradients; the router's is Partial."""
    found = equal_to_one_device(
        lambda group: MixtureOfExperts(HIDDEN, INNER, RULE, group),
        inputs()[0],
        devices=3,
        cut=Shard(0),
        output=Shard(0),
        state=Cluster(1).run(lambda group: MixtureOfExperts(HIDDEN, INNER, RULE, group).double().state_dict())[0],
    )
    assert found.unequal == ["router.weight"]


def test_a_device_without_a_token_and_an_expert_without_a_row():
    rule = RoutingRule(6, 1)
    x, above = inputs(tokens=2)
    expected, _, _ = together(1, rule, x, above)
    found, seen, _ = together(5, rule, x, above)
    assert_same(found, expected)
    assert seen[4].wanted.sum(1).tolist() == [1, 1, 0, 0, 0]
    assert found["experts.up"].abs().sum((1, 2)).count_nonzero() <= 2


def test_no_token_at_all():
    found, _, _ = together(2, RULE, *(x[:0] for x in inputs()))
    assert found["output"].shape == (0, HIDDEN)
    assert not found["experts.up"].any()


def test_any_shape_before_the_last_dim():
    x, above = (x[:36].reshape(6, 6, HIDDEN) for x in inputs())
    flat, _, _ = together(3, RULE, *(x[:36] for x in inputs()))
    found, _, _ = together(3, RULE, x, above)
    assert torch.equal(found["output"].flatten(0, 1), flat["output"])


def test_renormalized_gates_sum_to_what_they_did():
    _, (seen,), _ = together(1, RULE, *inputs(), capacity_factor=0.7, renormalize=True)
    layer = MixtureOfExperts.__new__(MixtureOfExperts)
    layer.__dict__ |= {"renormalize": True}
    gates = layer.gates(seen.routing, seen)
    dropped = seen.chosen < 0
    assert 0 < dropped.any(1).sum()
    assert not gates[dropped].any()
    alive = ~dropped.all(1)
    torch.testing.assert_close(gates.sum(1)[alive], torch.ones(int(alive.sum()), dtype=torch.float64))


def test_a_shared_expert_hides_the_dispatch_and_changes_no_number():
    expected, _, _ = together(1, RULE, *inputs(), shared=1)
    found, _, cluster = together(4, RULE, *inputs(), shared=1, kind=OverlappedExperts)
    assert_same(found, expected)
    plain = together(4, RULE, *inputs(), shared=1)[2]
    assert cluster.meters.rows() == plain.meters.rows()

    def forward(group, kind):
        with torch.device("meta"):
            kind(1024, 4096, RoutingRule(8, 2), group, shared=1)(torch.randn(512, 1024))

    seconds = []
    for kind in (MixtureOfExperts, OverlappedExperts):
        cluster = Cluster(4, hardware="H100")
        cluster.run(forward, kind)
        seconds.append(cluster.trace.seconds)
    assert seconds[1] < seconds[0]


# ---- what is sent ----


@pytest.mark.parametrize("size", [2, 3, 6])
def test_bytes_are_those_of_the_table(size):
    _, seen, cluster = together(size, RULE, *inputs(), sums=False)
    for rank in range(size):
        table = seen[rank].plan.table
        away = sum(table[rank]) - table[rank][rank]
        to_here = sum(row[rank] for row in table) - table[rank][rank]
        count = cluster.meters.count(rank, "all_to_all")
        assert count.calls == 4  # there and back, forward and backward
        assert count.bytes_sent == 8 * HIDDEN * 2 * (away + to_here)
    assert cluster.meters.count(0, "all_gather").bytes_sent == 8 * RULE.experts * (size - 1)
    assert not cluster.meters.count(0, "all_reduce").bytes_sent  # a tensor group of one


def test_without_data_the_loads_are_even():
    """Each all-to-all is k T/P h (P-1)/P numbers."""
    rule, tokens, devices = RoutingRule(16, 2), 2048, 8
    found = measure(lambda group: MixtureOfExperts(64, 128, rule, group), (tokens, 64), devices=devices, cut=Shard(0))
    one_way = 2 * (rule.k * tokens // devices) * 64 * (devices - 1) // devices
    assert found.forward.sent["all_to_all"].bytes_sent == 2 * one_way
    assert found.backward.sent["all_to_all"].bytes_sent == 2 * one_way
    assert found.parameters == 2 * (2 * 64 * 128) + 16 * 64
    assert found.forward.flops == 2 * tokens // devices * (rule.k * 2 * 64 * 128 + 16 * 64)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda g: MixtureOfExperts(HIDDEN, INNER, RoutingRule(3, 2), g), "3 experts cannot be divided over 4 devices"),
        (lambda g: MixtureOfExperts(HIDDEN, INNER, RULE, g, capacity_factor=0), "must be above 0"),
        (lambda g: MixtureOfExperts(HIDDEN, INNER, RULE, g, capacity_factor=-1.0), "must be above 0"),
        (lambda g: MixtureOfExperts(HIDDEN, INNER, RULE, g)(torch.zeros(2, 5)), r"shape \(2, 5\); its last dim must"),
        (lambda g: OverlappedExperts(HIDDEN, INNER, RULE, g)(torch.zeros(2, HIDDEN)), "pass shared=1"),
    ],
)
def test_refused(make, says):
    with pytest.raises(ValueError, match=says):
        Cluster(4).run(make)


def test_initialized_alike_on_every_grid():
    def weights(group, *grid):
        return one_step(group, RULE, *inputs(), *grid)["output"]

    whole = Cluster(1).run(weights, 1, 1)[0]
    assert torch.equal(torch.cat(Cluster(3).run(weights, 3, 1)), whole)


def test_a_layer_that_has_worked_is_copied_like_a_fresh_one():
    """An average of weights copies a layer in the middle of a training: what it saw last holds a graph."""

    def program(group):
        torch.manual_seed(0)
        layer = MixtureOfExperts(8, 16, RoutingRule(4, 2), group)
        x = torch.randn(6, 8)
        y = layer(x)
        copied = copy.deepcopy(layer)
        assert copied.seen is None
        assert layer.seen is not None
        with torch.no_grad():
            layer.experts.up.zero_()
        return torch.equal(copied(x), y)

    assert Cluster(2).run(program) == [True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_that_loses_all_its_choices_teaches_nothing(dtype):
    """Its gates are scaled up to what they were: 0 over 0, and the router would be no number from then on."""
    rule = RoutingRule(8, 4, score="sigmoid", normalize=False, scale=2.5)
    x = torch.randn(24, HIDDEN, dtype=dtype, generator=torch.Generator().manual_seed(1))

    def program(group):
        torch.manual_seed(0)
        layer = MixtureOfExperts(HIDDEN, INNER, rule, group, capacity_factor=0.05, renormalize=True).to(dtype)
        y = layer(x.tensor_split(group.size)[group.rank])
        y.square().sum().backward()
        return y.detach(), group.all_reduce(layer.router.weight.grad)

    for size in (1, 2):
        for y, grad in Cluster(size).run(program):
            assert (y == 0).all(1).any(), "some token has lost all"
            assert grad.isfinite().all()
            assert grad.abs().max() > 0
