"""What ZeRO refuses, by words that name the rank, the shapes and the fix; and what it loads."""

import copy
import re

import pytest
import torch
from torch import nn

from lib import FullySharded, MasterWeights, ShardedOptimizer, load_optimizer_state
from lib.devices import Cluster, MismatchError


def make(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2, bias), nn.Linear(2, 4, bias))


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.1)


def with_masters(parameters):
    return MasterWeights(parameters, adam, torch.float64)


def distribute(model, group, stage, make_optimizer=adam, **options):
    if stage == 3:
        FullySharded(model, group, model, **options)
        return make_optimizer(model.parameters())
    return ShardedOptimizer(model, group, make_optimizer, bucket_bytes=0)


STAGES = pytest.mark.parametrize("stage", [1, 3])


@STAGES
@pytest.mark.parametrize("model", [make().requires_grad_(False), nn.ReLU()], ids=["frozen", "empty"])
def test_a_model_whose_parameters_require_no_gradient(model, stage):
    with pytest.raises(ValueError) as caught:
        Cluster(2).run(lambda group: distribute(model, group, stage))
    who = {1: "ShardedOptimizer", 3: "FullySharded"}[stage]
    count = len(list(model.parameters()))
    message = f"{who} on rank 0 of 2: none of the {count} parameters of {type(model).__name__} requires a gradient"
    assert message in str(caught.value)


@STAGES
def test_parameters_that_differ_at_the_start(stage):
    def program(group):
        model = make()
        with torch.no_grad():
            model[1].weight[3, 1] += 1e-6 * (group.rank == 1)
        distribute(model, group, stage)

    with pytest.raises(ValueError) as caught:
        Cluster(3).run(program)
    assert "1.weight (4, 2) is not the same on all devices" in str(caught.value)
    assert "[0, 2]; [1]" in str(caught.value)
    assert "Call broadcast_parameters(module, group)" in str(caught.value)


def backward(model, zero, stage, x, allow_unused=False):
    if stage == 2:
        with zero.reducing(allow_unused=allow_unused):
            model(x).sum().backward()
    else:
        model(x).sum().backward()
    if stage == 1:
        zero.reduce_gradients(allow_unused=allow_unused)


def test_layers_that_have_no_forward_or_are_elsewhere():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(make())

        def forward(self, x):
            return self.parts[0](x)

    def program(group, layers):
        FullySharded(Holder(), group, layers)

    for layer in (nn.ModuleList(), make()):
        with pytest.raises(ValueError) as caught:
            Cluster(2).run(program, [layer])
        message = rf"on rank \d of 2: {type(layer).__name__} cannot be a layer: each must be a part of the module"
        assert re.search(message, str(caught.value))
    with pytest.raises(ValueError, match=r"ModuleList cannot be a layer.*pass layers=\[\*list\]"):
        Cluster(2).run(lambda group: FullySharded(nn.ModuleList(make()), group))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_missing_gradient_is_named(stage):
    def program(group):
        model = make()
        model[0].lonely = nn.Parameter(torch.ones(1))
        zero = distribute(model, group, stage)
        backward(model, zero, stage, torch.ones(1, 3))

    with pytest.raises(ValueError) as caught:
        Cluster(2).run(program)
    who = {1: "reduce_gradients", 2: "reducing", 3: "backward of a FullySharded layer"}[stage]
    assert re.search(rf"{who} on rank \d of 2: no gradient reached 0.lonely. Call backward", str(caught.value))
    assert "pass allow_unused=True on all devices, or freeze them" in str(caught.value)


@pytest.mark.parametrize("share", [-0.1, 1.5, "half", True])
def test_a_share_that_is_none(share):
    def one(group):
        distribute(make(), group, 1).reduce_gradients(share)

    def two(group):
        with distribute(make(), group, 2).reducing(share):
            pytest.fail("it must be refused before the backward")

    for program, who in ((one, "reduce_gradients"), (two, "reducing")):
        with pytest.raises(ValueError, match=rf"{who} on rank \d of 2: share={share!r}"):
            Cluster(2).run(program)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_sparse_gradient(stage):
    def program(group):
        model = nn.Sequential(nn.Embedding(4, 2, sparse=True))
        zero = distribute(model, group, stage)
        backward(model, zero, stage, torch.tensor([1]))

    with pytest.raises(TypeError, match=r"the gradient of .*\(4, 2\).* is sparse: use nn.Embedding\(sparse=False\)"):
        Cluster(2).run(program)


def test_two_backwards_inside_one_reducing():
    def program(group):
        model = make()
        zero = distribute(model, group, 2)
        with zero.reducing():
            model(torch.ones(1, 3)).sum().backward()
            model(torch.ones(1, 3)).sum().backward()

    with pytest.raises(RuntimeError) as caught:
        Cluster(2).run(program)
    assert "reducing on rank 0 of 2: a second gradient of 1." in str(caught.value)
    assert "Put one backward() inside each `with`" in str(caught.value)


def test_devices_with_different_numbers_of_micro_batches():
    def program(group):
        model = make()
        zero = distribute(model, group, 2)
        for _ in range(2 - group.rank):
            backward(model, zero, 2, torch.ones(1, 3))
        zero.step()

    with pytest.raises(MismatchError, match="all devices|every device"):
        Cluster(2).run(program)


def test_after_a_failed_backward_no_hook_is_left():
    def program(group):
        model = make()
        zero = distribute(model, group, 2)
        with pytest.raises(ZeroDivisionError), zero.reducing():
            raise ZeroDivisionError
        model(torch.ones(1, 3)).sum().backward()  # a hook would send, or complain
        assert all(p.grad is not None for p in model.parameters())
        zero.zero_grad()
        assert all(p.grad is None for p in model.parameters())
        backward(model, zero, 2, torch.ones(1, 3))

    Cluster(2).run(program)


# ---- the optimizer's state ----


def train(model, zero, stage, steps):
    for step in range(steps):
        zero.zero_grad()
        backward(model, zero, stage, torch.full((1, 3), step + 1.0))
        zero.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("make_optimizer", [adam, with_masters], ids=["plain", "masters"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_training_goes_on_where_it_was_saved(stage, make_optimizer):
    def program(group):
        model = make()
        zero = distribute(model, group, stage, make_optimizer)
        train(model, zero, stage, 2)
        parameters = copy.deepcopy(model.state_dict())
        state = copy.deepcopy(zero.state_dict())
        wanted = train(model, zero, stage, 2)

        resumed = make()
        zero = distribute(resumed, group, stage, make_optimizer)
        if stage < 3 or make_optimizer is adam:
            resumed.load_state_dict(parameters)
        if stage == 3:
            load_optimizer_state(zero, state, group)
        else:
            zero.load_state_dict(state)
        assert make_optimizer is adam or all("master" in of_one for of_one in state["state"].values()), "left as it was"
        found = train(resumed, zero, stage, 2)
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))

    Cluster(3).run(program)


@pytest.mark.parametrize("make_optimizer", [adam, with_masters], ids=["plain", "masters"])
@STAGES
def test_state_of_another_number_of_devices(stage, make_optimizer):
    def save(group):
        model = make()
        zero = distribute(model, group, stage, make_optimizer)
        train(model, zero, stage, 1)
        return zero.state_dict()

    state = Cluster(1).run(save)[0]

    def load(group):
        zero = distribute(make(), group, stage, make_optimizer)
        if stage == 3:
            load_optimizer_state(zero, state, group)
        else:
            zero.load_state_dict(state)

    with pytest.raises(ValueError) as caught:
        Cluster(2).run(load)
    # Stage 1 cuts each parameter, here a bucket each, in halves of 3; stage 3 a layer's 8 elements in halves of 4.
    rank, size = re.fullmatch(
        r"load_optimizer_state on rank (\d) of 2: \w+ of parameter 0 has the shape \(6,\), but this device steps "
        r"a piece of shape \((\d),\)\. Load what this rank saved, with the same model on as many devices",
        str(caught.value),
    ).groups()
    assert int(size) == {1: [3, 3], 3: [4, 2]}[stage][int(rank)]


def test_state_of_another_model():
    def program(group):
        other = distribute(make(bias=False), group, 1)
        distribute(make(), group, 1).load_state_dict(other.state_dict())

    with pytest.raises(ValueError, match=r"rank \d of 2: the state is of 2 parameters, this optimizer steps 4. Load"):
        Cluster(2).run(program)


def test_an_optimizer_s_settings_are_within_reach():
    def program(group):
        zero = ShardedOptimizer(make(), group, with_masters)
        for some in zero.optimizer.param_groups:
            some["lr"] = 0.5
        assert zero.state_dict()["param_groups"][0]["lr"] == 0.5

    Cluster(2).run(program)


def test_state_may_hold_what_is_no_tensor():
    def program(group):
        zero = ShardedOptimizer(make(), group, lambda pieces: torch.optim.SGD(pieces, 0.1))
        state = zero.state_dict() | {"state": {0: {"count": 3, "nothing": None}}}
        zero.load_state_dict(state)
        assert zero.optimizer.state[zero.pieces[0]] == {"count": 3, "nothing": None}

    Cluster(2).run(program)
