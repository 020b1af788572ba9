"""Asynchronous training, against a loop on one device that keeps old parameters by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from lib.devices import Cluster
from lib.parallel.data.parameter_server import (
    Update,
    plan_updates,
    train_asynchronously,
)


def batches(worker):
    random = torch.Generator().manual_seed(worker)
    while True:
        x = torch.randn(8, 3, generator=random, dtype=torch.float64)
        yield x, (x**2).sum(1, keepdim=True)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def run(seconds, updates, optimizer):
    plan = plan_updates(seconds, updates)

    def program(group):
        model = mlp()
        data = batches(group.rank)

        def loss(model):
            x, y = next(data)
            return nn.functional.mse_loss(model(x), y)

        losses = train_asynchronously(group, model, optimizer(model.parameters()), loss, plan)
        return losses, [p.detach() for p in model.parameters()]

    return plan, Cluster(len(seconds) + 1).run(program)


def by_hand(plan, workers, optimizer):
    model = mlp()
    stepper = optimizer(model.parameters())
    data = {worker: batches(worker) for worker in range(1, workers + 1)}
    history, losses = [copy.deepcopy(model)], []
    for update in plan:
        x, y = next(data[update.worker])
        old = history[update.read]
        loss = nn.functional.mse_loss(old(x), y)
        grads = torch.autograd.grad(loss, list(old.parameters()))
        for p, g in zip(model.parameters(), grads, strict=True):
            p.grad = g
        stepper.step()
        history.append(copy.deepcopy(model))
        losses.append(loss.item())
    return losses, list(model.parameters())


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.5),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
}


@pytest.mark.parametrize("seconds", [[1.0], [1.0, 1.0], [1.0, 2.5, 3.0], [3, 1, 1, 1]])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_is_the_sequential_loop_with_stale_gradients(seconds, optimizer):
    plan, outputs = run(seconds, 20, OPTIMIZERS[optimizer])
    losses, parameters = by_hand(plan, len(seconds), OPTIMIZERS[optimizer])
    assert outputs[0][0] == pytest.approx(losses, rel=1e-12)
    for _, on_this_device in outputs:
        for p, q in zip(on_this_device, parameters, strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=0, atol=1e-12)
    seen = [iter(own) for own, _ in outputs]
    assert [next(seen[update.worker]) for update in plan] == outputs[0][0]


def test_one_worker_is_plain_training():
    plan, outputs = run([1.0], 12, OPTIMIZERS["sgd"])
    assert all(update.staleness == 0 for update in plan)
    model, data = mlp(), batches(1)
    stepper = OPTIMIZERS["sgd"](model.parameters())
    for expected in outputs[0][0]:
        x, y = next(data)
        stepper.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        assert loss.item() == expected
        loss.backward()
        stepper.step()


def test_equal_workers_are_stale_by_the_others():
    plan = plan_updates([1.0] * 4, 40)
    assert [update.worker for update in plan[:8]] == [1, 2, 3, 4, 1, 2, 3, 4]
    assert [update.staleness for update in plan[:4]] == [0, 1, 2, 3]
    assert {update.staleness for update in plan[4:]} == {3}


def test_a_slow_worker_comes_seldom_and_is_very_stale():
    plan = plan_updates([1.0, 1.0, 10.0], 63)
    counts = {worker: sum(update.worker == worker for update in plan) for worker in (1, 2, 3)}
    assert counts == {1: 30, 2: 30, 3: 3}
    assert max(update.staleness for update in plan if update.worker == 3) == 20
    assert plan[0] == Update(0, 1, 0)


@pytest.mark.parametrize("stale", [0, 1, 2, 5])
def test_the_largest_stable_step_of_a_parabola(stale):
    """One parameter, loss c/2 w^2, `stale` + 1 equal workers: converges below the limit of the docstring, not above."""
    curvature = 4.0
    limit = 2 * math.sin(math.pi / (4 * stale + 2)) / curvature

    def program(group, rate):
        model = nn.Linear(1, 1, bias=False).double()
        nn.init.ones_(model.weight)
        half = torch.tensor(curvature / 2)
        plan = plan_updates([1.0] * (stale + 1), 200)
        sgd = torch.optim.SGD(model.parameters(), rate)
        train_asynchronously(group, model, sgd, lambda m: half * m.weight.square().sum(), plan)
        return abs(model.weight.item())

    assert Cluster(stale + 2).run(program, 0.9 * limit)[0] < 0.5
    assert Cluster(stale + 2).run(program, 1.1 * limit)[0] > 5


def test_bad_input():
    for seconds in ([], [0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="one time per worker, each above 0"):
            plan_updates(seconds, 3)

    def program(group):
        model = mlp()
        train_asynchronously(group, model, OPTIMIZERS["sgd"](model.parameters()), None, plan_updates([1, 1], 4))

    with pytest.raises(ValueError, match=r"rank 0 of 2: the plan names workers \[2\].* workers 1 to 1"):
        Cluster(2).run(program)


class Mixed(nn.Module):
    """Parameters of two types, some frozen; `unused` gets a gradient only if it is used."""

    def __init__(self, use):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1).double()
        self.frozen, self.unused = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3)
        self.use = use

    def forward(self, x):
        x = self.frozen(x.float())
        return self.last(self.first(self.unused(x) if self.use else x).double())


def train_mixed(group, use):
    model = Mixed(use)
    data = batches(group.rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    frozen = model.frozen.weight.clone()
    losses = train_asynchronously(
        group, model, optimizer, lambda model: model(next(data)[0]).square().mean(), plan_updates([1, 2], 6)
    )
    assert torch.equal(model.frozen.weight, frozen)
    return losses, {name: p.detach() for name, p in model.named_parameters()}


def test_frozen_parameters_and_types_stay_as_they_are():
    (losses, weights), *others = Cluster(3).run(train_mixed, True)
    assert losses[-1] < losses[0]
    assert weights["first.weight"].dtype == torch.float32
    assert weights["last.weight"].dtype == torch.float64
    assert all(torch.equal(theirs[name], p) for _, theirs in others for name, p in weights.items())


def test_a_parameter_without_a_gradient_is_named():
    with pytest.raises(ValueError, match=r"on rank [12] of 3: no gradient reached unused.weight, unused.bias. Freeze"):
        Cluster(3).run(train_mixed, False)


def test_workers_begin_with_the_servers_parameters():
    def program(group, apart):
        torch.manual_seed(group.rank if apart else 0)
        model = nn.Linear(3, 1).double()
        data = batches(group.rank)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        return train_asynchronously(
            group, model, optimizer, lambda model: model(next(data)[0]).square().mean(), plan_updates([1, 2], 6)
        )

    assert Cluster(3).run(program, True) == Cluster(3).run(program, False)
