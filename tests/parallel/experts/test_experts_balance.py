"""Balancing: the losses and their gradients on any number of devices, and the bias that settles the loads."""

import pytest
import torch
from parallel.expert_layer import HIDDEN, INNER, inputs, together

from lib.devices import Cluster
from lib.parallel.experts.balance import balance_loss, imbalance, load_share, update_bias, z_loss
from lib.parallel.experts.gradients import sum_gradients
from lib.parallel.experts.grid import ExpertGrid
from lib.parallel.experts.layer import MixtureOfExperts
from lib.parallel.experts.router import RoutingRule

RULE = RoutingRule(6, 2)


def losses(group, x, rule=RULE, local_loads=False):
    """The value of both losses over the batch, and the router's gradient."""
    torch.manual_seed(0)
    grid = ExpertGrid.over(group)
    layer = MixtureOfExperts(HIDDEN, INNER, rule, grid).double()
    mine = x.tensor_split(group.size)[group.rank]
    layer(mine)
    if local_loads:
        object.__setattr__(layer.seen, "wanted", layer.seen.wanted[group.rank :][:1])
    values = torch.stack([balance_loss(layer.seen), z_loss(layer.seen)])
    share = len(mine) / len(x)
    gradients = []
    for value in values:
        layer.zero_grad()
        (share * value).backward(retain_graph=True)
        for p in layer.experts.parameters():
            p.grad = torch.zeros_like(p)
        sum_gradients(layer, grid)
        gradients.append(layer.router.weight.grad.clone())
    return group.all_reduce(share * values.detach()), *gradients


@pytest.mark.parametrize("rule", [RULE, RoutingRule(6, 2, "sigmoid")])
@pytest.mark.parametrize("size", [2, 5])
def test_the_same_on_any_number_of_devices(size, rule):
    x, _ = inputs()
    expected = Cluster(1).run(losses, x, rule)[0]
    for found in Cluster(size).run(losses, x, rule):
        for a, b in zip(found, expected, strict=True):
            assert float((a - b).abs().max()) < 1e-12


def test_loads_of_one_device_give_another_gradient():
    x, _ = inputs()
    expected, wrong = (Cluster(4).run(losses, x, RULE, local)[0][1] for local in (False, True))
    assert float((wrong - expected).norm() / expected.norm()) > 0.1


def test_transformers_counts_k_times_as_much():
    """Its loss sums over the k choices, ours is 1 when all is even."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func  # slow, and only needed here

    x, _ = inputs()
    _, (seen,), _ = together(1, RULE, x, x)
    theirs = load_balancing_loss_func((seen.routing.logits.float(),), RULE.experts, RULE.k)
    assert abs(balance_loss(seen).item() * RULE.k - theirs.item()) < 1e-6


def test_even_loads_and_probabilities_give_one():
    _, (seen,), _ = together(1, RULE, *inputs())
    object.__setattr__(seen, "wanted", torch.full((1, 6), 5))
    assert abs(balance_loss(seen).item() - 1) < 1e-12
    assert load_share(seen.wanted).tolist() == pytest.approx([1 / 6] * 6)


def test_z_loss():
    _, (seen,), _ = together(1, RULE, *inputs())
    plain = sum(row.exp().sum().log().item() ** 2 for row in seen.routing.logits) / len(seen.routing.logits)
    assert abs(z_loss(seen).item() - plain) < 1e-12


def test_imbalance():
    assert imbalance(torch.tensor([[1, 2, 3], [3, 2, 1]])) == 1
    assert imbalance(torch.tensor([[0, 6, 0]])) == 3


def settle(group, x, rate, steps):
    """Loads over steps in which only the bias moves."""
    torch.manual_seed(0)
    layer = MixtureOfExperts(HIDDEN, INNER, RoutingRule(8, 2, "sigmoid"), group).double()
    mine, found = x.tensor_split(group.size)[group.rank], []
    for _ in range(steps):
        with torch.no_grad():
            layer(mine)
        found.append(imbalance(layer.seen.wanted))
        update_bias(layer.router, layer.seen, rate)
    return found, layer.router.bias


def test_the_bias_settles_the_loads_and_swings_when_too_large():
    x = torch.randn(256, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 1
    (gentle, _), _ = Cluster(2).run(settle, x, 2e-3, 200)
    assert gentle[0] > 2
    assert max(gentle[-20:]) < 1.1
    few = [Cluster(size).run(settle, x, 2e-3, 20)[0][1] for size in (1, 2)]
    assert torch.equal(*few)
    rough = Cluster(1).run(settle, x, 0.2, 100)[0][0]
    assert max(rough[-20:]) > 1.5


def test_a_device_without_tokens_adds_nothing():
    x, _ = inputs()

    def program(group):
        torch.manual_seed(0)
        layer = MixtureOfExperts(HIDDEN, INNER, RULE, group).double()
        mine = x if group.rank == 0 else x[:0]
        layer(mine)
        value = (balance_loss(layer.seen) + z_loss(layer.seen)) * (len(mine) / len(x))
        value.backward()
        return group.all_reduce(value.detach()), group.all_reduce(layer.router.weight.grad)

    right = Cluster(1).run(program)[0]
    for found in Cluster(3).run(program):
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
