"""What is done to a module on one device may be done to a sharded one: same effect, or refused by name."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.optim import swa_utils

from lib import (
    FullySharded,
    MasterWeights,
    ShardedGradScaler,
    ShardedOptimizer,
    average_gradients,
    clip_gradients,
    gradient_norm,
    shard_batch,
    whole_parameters,
    whole_shape,
)
from lib.devices import Cluster
from lib.parallel.zero.piece import Piece

X = torch.linspace(-1, 1, 24, dtype=torch.float64).view(6, 4).sin()
Y = X.flip(1)[:, :3].contiguous()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def train(model, optimizer, x, y, steps=3, between=lambda step: None):
    for step in range(steps):
        between(step)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(found, wanted, tolerance=1e-12):
    assert list(found) == list(wanted)
    for name, x in wanted.items():
        torch.testing.assert_close(found[name], x, rtol=0, atol=tolerance)


def everywhere(program, wanted, sizes=(3,)):
    """Three devices cut the tensors unevenly, and some in the middle of a row."""
    for size in sizes:
        for found in Cluster(size).run(program):
            equal(found, wanted)


# ---- other weights in the place of the old ones ----


def zeros(model):
    return {name: torch.zeros_like(p) for name, p in model.named_parameters()}


def by_copy(model):
    model.load_state_dict(zeros(model))


def by_assign(model):
    model.load_state_dict(zeros(model), assign=True)


def by_data(model):
    for p in model.parameters():
        p.data = torch.zeros_like(p)


def by_parameter(model):
    for layer in (model[0], model[2]):
        layer.weight, layer.bias = (nn.Parameter(torch.zeros_like(p)) for p in (layer.weight, layer.bias))


def by_init(model):
    for p in model.parameters():
        nn.init.zeros_(p)


def by_vector(model):
    for p in model.parameters():
        p.data.mul_(0)


@pytest.mark.parametrize("change", [by_copy, by_assign, by_data, by_parameter, by_init, by_vector])
def test_other_weights_count_and_train(change):
    alone = net()
    change(alone)
    assert alone(X).abs().max() == 0
    train(alone, torch.optim.SGD(alone.parameters(), 0.1), X, Y)

    def program(group):
        model = net()
        FullySharded(model, group, [model[0]])
        change(model)
        assert model(X).abs().max() == 0
        train(model, torch.optim.SGD(model.parameters(), 0.1), shard_batch(X, group), shard_batch(Y, group))
        return whole_parameters(model)

    everywhere(program, weights(alone))


def test_functional_call_uses_what_it_is_given():
    alone = net()
    given = {name: (p * 2).detach().requires_grad_() for name, p in alone.named_parameters()}
    torch.func.functional_call(alone, given, (X,)).square().mean().backward()

    def program(group):
        model = net()
        FullySharded(model, group, [model[0]])
        mine = {name: (p.detach() * 2).requires_grad_() for name, p in model.named_parameters()}
        torch.func.functional_call(model, mine, (shard_batch(X, group),)).square().mean().backward()
        assert all(p.grad is None for p in model.parameters())
        return {name: p.grad.detach() for name, p in mine.items()}

    for size in (1, 2, 3):
        outputs = Cluster(size).run(program)
        whole = {name: torch.cat([found[name] for found in outputs]) for name in given}
        equal(whole, {name: p.grad.flatten() for name, p in given.items()})


def test_a_replacement_of_another_shape_is_named():
    def program(group):
        model = net()
        FullySharded(model, group)
        model[2].weight = nn.Parameter(torch.zeros(3, 5).double())
        model(X)

    with pytest.raises(
        ValueError, match=r"2.weight \(3, 5\) was replaced by \(3, 5\); this device's piece has the shape"
    ):
        Cluster(2).run(program)


def test_a_tied_parameter_replaced_in_one_place_is_named():
    def program(group):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        FullySharded(model, group)
        model[1].weight = nn.Parameter(model[1].weight.detach().clone())
        model(torch.ones(1, 4))

    with pytest.raises(ValueError, match=r"0.weight \(4, 4\) was shared by several modules, and they hold different"):
        Cluster(2).run(program)


def test_another_dtype_after_sharding():
    alone = net().float()
    train(alone, torch.optim.SGD(alone.parameters(), 0.1), X.float(), Y.float())

    def program(group):
        model = net()
        FullySharded(model, group, [model[0]])
        model.float()
        x, y = shard_batch(X.float(), group), shard_batch(Y.float(), group)
        train(model, torch.optim.SGD(model.parameters(), 0.1), x, y)
        return whole_parameters(model)

    for found in Cluster(2).run(program):
        equal(found, weights(alone), 1e-6)


# ---- copies ----


def test_a_deep_copy_has_weights_of_its_own_and_trains():
    alone = net()
    other = copy.deepcopy(alone)
    train(other, torch.optim.Adam(other.parameters(), 0.1), X, Y)

    def program(group):
        model = net()
        FullySharded(model, group, [model[0]])
        before = whole_parameters(model)
        second = copy.deepcopy(copy.deepcopy(model))
        train(second, torch.optim.Adam(second.parameters(), 0.1), shard_batch(X, group), shard_batch(Y, group))
        equal(whole_parameters(model), before, 0)
        assert torch.equal(model(X), alone(X))
        layer = copy.deepcopy(model[0])  # a layer that was sharded, without its model
        nn.init.zeros_(layer.weight)
        assert torch.equal(layer(X), layer(torch.zeros_like(X)))
        assert not torch.equal(model[0](X), layer(X))
        return whole_parameters(second)

    everywhere(program, weights(other), sizes=(1, 2, 3))


def test_averaged_weights():
    def average(model, optimizer, x, y):
        averaged = swa_utils.AveragedModel(model, avg_fn=lambda mean, p, count: 0.5 * mean + 0.5 * p)
        by_hand = copy.deepcopy(model)
        train(model, optimizer, x, y, between=lambda step: (averaged.update_parameters(model), lerp(by_hand, model)))
        return averaged.module, by_hand

    def lerp(mean, model):
        with torch.no_grad():
            for a, b in zip(mean.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 0.25)

    alone = net()
    wanted = [weights(one) for one in average(alone, torch.optim.SGD(alone.parameters(), 0.5), X, Y)]

    def program(group, which):
        model = net()
        FullySharded(model, group, [model[0]])
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        return whole_parameters(average(model, optimizer, shard_batch(X, group), shard_batch(Y, group))[which])

    for which in (0, 1):
        everywhere(lambda group, which=which: program(group, which), wanted[which])


def test_a_part_without_its_gathering_is_refused():
    def program(group):
        model = net()
        FullySharded(model, group)
        return copy.deepcopy(model[0])(X)

    with pytest.raises(RuntimeError, match=r"linear of 0.weight \(5, 4\): rank \d of 2 holds only its elements"):
        Cluster(2).run(program)


def test_no_file_can_hold_a_group():
    def program(group):
        model = net()
        FullySharded(model, group)
        pickle.dumps(model)

    with pytest.raises(TypeError, match="holds a group of devices, which no file can: save model.state_dict"):
        Cluster(2).run(program)


def test_a_saved_state_is_of_plain_tensors():
    def program(group):
        model = net()
        FullySharded(model, group)
        return {type(x) for x in pickle.loads(pickle.dumps(model.state_dict())).values()}

    assert Cluster(2).run(program) == [{torch.Tensor}] * 2


# ---- training other parameters than at first ----


@pytest.mark.parametrize("first", [True, False], ids=["frozen, then not", "trained, then frozen"])
def test_freezing_and_unfreezing(first):
    def run(model, x, y, shard=lambda model: None):
        model[0].requires_grad_(not first)
        shard(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)

        def between(step):
            if step == 2:
                model[0].requires_grad_(first)
                if first:
                    optimizer.add_param_group({"params": list(model[0].parameters())})

        train(model, optimizer, x, y, 4, between)

    alone = net()
    run(alone, X, Y)

    def program(group, layers):
        model = net()
        shard = lambda model: FullySharded(model, group, [model[n] for n in layers])  # noqa: E731
        run(model, shard_batch(X, group), shard_batch(Y, group), shard)
        return whole_parameters(model)

    for layers in ([], [0], [0, 2]):
        everywhere(lambda group, layers=layers: program(group, layers), weights(alone))


# ---- other ways to use the weights ----


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
        self.gain = nn.Parameter(torch.arange(4.0).double())

    def encode(self, x):
        return x @ self.up.weight.T

    def scaled(self, x):
        return x * self.gain

    def forward(self, x):
        return self.down(self.scaled(self.encode(x)))


USES = {
    "another method": lambda m: m.encode(X),
    "a gain": lambda m: m.scaled(torch.ones(1).double()),
    "a gain and one": lambda m: 1 + m.gain,
    "a gain in another type": lambda m: torch.ones(1) * m.gain.float(),
    "a copy of a gain": lambda m: torch.ones(1) * m.gain.clone(),
    "the data of a gain": lambda m: torch.ones(1) * m.gain.data,
    "a part of the model": lambda m: m.up(X),
    "forward itself": lambda m: m.forward(X),
    "a penalty": lambda m: sum(p.square().sum() for p in m.parameters()),
    "a norm": lambda m: m.up.weight.norm(),
    "all in one vector": lambda m: nn.utils.parameters_to_vector(m.parameters()),
    "an einsum": lambda m: torch.einsum("bi,oi->bo", X, m.up.weight),
    "a view": lambda m: m.up.weight.view(2, 8),
    "an element": lambda m: m.gain[0],
    "stacked": lambda m: torch.stack([m.gain, m.down.bias]),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_piece_is_not_taken_for_the_whole(use, grad):
    wanted = use(Net())

    def refused(group):
        model = Net()
        FullySharded(model, group)
        with torch.set_grad_enabled(grad):
            use(model)

    # With 4 devices a gain's piece is one number, which fits everything.
    for size in (2, 4):
        with pytest.raises(RuntimeError, match=r"of (up.weight|gain) \(4.*\): rank \d of \d holds only its elements"):
            Cluster(size).run(refused)

    def gathered(group):
        model = Net()
        sharded = FullySharded(model, group)
        with torch.set_grad_enabled(grad), sharded.gathered():
            return use(model).detach()

    for found in Cluster(3).run(gathered):
        torch.testing.assert_close(found, wanted.detach(), rtol=0, atol=1e-12)


def test_what_is_computed_while_gathered_reaches_the_pieces():
    alone = Net()
    alone.encode(X).square().mean().backward()

    def program(group):
        model = Net()
        sharded = FullySharded(model, group, [model.up], allow_unused=True)
        with sharded.gathered():
            loss = model.encode(shard_batch(X, group)).square().mean()
        loss.backward()
        return model.up.weight.grad.detach()

    for size in (1, 2, 3):
        found = torch.cat(Cluster(size).run(program))
        torch.testing.assert_close(found, alone.up.weight.grad.flatten(), rtol=0, atol=1e-12)


def test_a_change_of_the_gathered_tensor_is_refused():
    def program(group):
        model = net()
        sharded = FullySharded(model, group)
        with sharded.gathered(), torch.no_grad():
            model[0].bias.zero_()

    with pytest.raises(
        RuntimeError, match=r"0.\w+ \(5.*\) was changed in place while it was whole, and would be forg|view"
    ):
        Cluster(2).run(program)


@pytest.mark.parametrize("init", [nn.init.normal_, nn.init.xavier_uniform_, lambda p: p.data.normal_()])
def test_random_numbers_would_repeat_in_every_piece(init):
    def program(group):
        model = net()
        FullySharded(model, group)
        for p in model.parameters():
            init(p)

    ours = r"_ of 0.weight \(5, 4\): .* Initialize, and apply weight_norm"
    with pytest.raises((RuntimeError, ValueError), match=f"{ours}|Fan in and fan out"):
        Cluster(2).run(program)


# ---- hooks that make weights ----


def old(make):
    def quietly(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return make(layer)

    return quietly


MAKERS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": lambda layer: parametrizations.spectral_norm(layer).eval(),
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": old(nn.utils.weight_norm),
    "old spectral_norm": lambda layer: nn.utils.spectral_norm(layer).eval(),
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 2),
}


@pytest.mark.parametrize("layers", [[], [0]], ids=["whole", "layer"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_made_before_sharding_they_train_as_on_one_device(make, layers):
    alone = net()
    make(alone[0])
    train(alone, torch.optim.SGD(alone.parameters(), 0.1), X, Y)

    def program(group):
        model = net()
        make(model[0])
        FullySharded(model, group, [model[n] for n in layers])
        train(model, torch.optim.SGD(model.parameters(), 0.1), shard_batch(X, group), shard_batch(Y, group))
        return whole_parameters(model)

    everywhere(program, weights(alone))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_made_after_sharding_they_are_refused(make):
    def program(group):
        model = net()
        FullySharded(model, group)
        make(model[0])

    with pytest.raises((ValueError, RuntimeError), match=r"0.weight|matrix|2 dimensions|number of parameters to prune"):
        Cluster(2).run(program)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_whoever_goes_on_after_the_refusal_gets_no_wrong_number(make):
    def program(group):
        model = net()
        FullySharded(model, group)
        with pytest.raises((ValueError, RuntimeError)):
            make(model[0])
        if "weight" in model[0]._parameters:  # nothing happened
            assert torch.equal(model(X), net()(X))
        else:
            with pytest.raises(ValueError, match=r"0.weight \(5, 4\) is no parameter of its module any more"):
                model(X)

    Cluster(2).run(program)


def test_recurrent_layers_and_attention():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.LSTM(4, 4, batch_first=True).double()
            self.second = nn.MultiheadAttention(4, 2, batch_first=True).double()

        def forward(self, x):
            x, _ = self.first(x)
            return self.second(x, x, x)[0]

    x = X.view(6, 1, 4).expand(6, 3, 4)
    alone = Both()
    train(alone, torch.optim.SGD(alone.parameters(), 0.1), x, x.flip(2))

    def program(group):
        model = Both()
        FullySharded(model, group, [model.first, model.second])
        mine = shard_batch(x, group)
        train(model, torch.optim.SGD(model.parameters(), 0.1), mine, mine.flip(2))
        return whole_parameters(model)

    everywhere(program, weights(alone))


# ---- sharding in several steps ----


def test_the_layers_first_and_then_the_model():
    class Layers(Net):
        def encode(self, x):
            return self.up(x)

    alone = Layers()
    train(alone, torch.optim.AdamW(alone.parameters(), 0.1), X, X)

    def in_steps(group):
        model = Layers()
        FullySharded(model.up, group)
        FullySharded(model.down, group)
        sharded = FullySharded(model, group)
        mine = shard_batch(X, group)
        train(model, torch.optim.AdamW(model.parameters(), 0.1), mine, mine)
        return sharded.whole_parameters()

    everywhere(in_steps, weights(alone), sizes=(1, 2, 3))


def test_all_parameters_belong_to_layers_sharded_before():
    alone = net()
    train(alone, torch.optim.AdamW(alone.parameters(), 0.1), X, Y)

    def program(group):
        model = net()
        for layer in (model[0], model[2]):
            FullySharded(layer, group)
        sharded = FullySharded(model, group)
        train(model, torch.optim.AdamW(model.parameters(), 0.1), shard_batch(X, group), shard_batch(Y, group))
        return sharded.whole_parameters()

    everywhere(program, weights(alone))


def twice(model, group):
    FullySharded(model, group)
    FullySharded(model, group)


def layer_twice(model, group):
    FullySharded(model[0], group)
    FullySharded(model, group, [model[0]])


@pytest.mark.parametrize("shard", [twice, layer_twice])
def test_twice_is_refused(shard):
    with pytest.raises(ValueError, match=r"FullySharded on rank \d of 2: this \w+ is sharded already"):
        Cluster(2).run(lambda group: shard(net(), group))


def test_a_tied_parameter_cut_apart_is_named():
    def program(group):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        FullySharded(model[0], group)
        if group.size == 2:
            FullySharded(model, group)
        model(torch.ones(1, 4))

    with pytest.raises(ValueError, match=r"1.weight is one parameter with weight of a layer that was sharded before"):
        Cluster(2).run(program)
    with pytest.raises(RuntimeError, match=r"linear of weight \(4, 4\).* This is the parameter as it was before"):
        Cluster(3).run(program)


def test_an_optimizer_made_too_early_is_told_so():
    def program(group):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        FullySharded(model, group)
        train(model, optimizer, shard_batch(X, group), shard_batch(Y, group))

    for size in (1, 2):
        with pytest.raises(RuntimeError, match=r"grad of 0.weight \(5, 4\).* make the optimizer after sharding"):
            Cluster(size).run(program)


def test_sharded_twice_over_by_an_optimizer():
    def program(group):
        model = net()
        FullySharded(model, group)
        ShardedOptimizer(model, group, torch.optim.SGD)

    with pytest.raises(ValueError, match=r"ShardedOptimizer on rank \d of 2: 0.weight is a piece already"):
        Cluster(2).run(program)


# ---- a graph that is stale after a step ----


def stale(model, optimizer, x, reduce=lambda: None):
    first = model(x).square().mean()
    second = model(x).square().mean()
    second.backward()
    reduce()
    optimizer.step()
    first.backward()


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_stale_graph_is_noticed_as_on_one_device(stage):
    def program(group):
        model = net()
        if stage == 1:
            zero = ShardedOptimizer(model, group, lambda pieces: torch.optim.SGD(pieces, 0.1))
            return stale(model, zero, X, zero.reduce_gradients)
        if stage == 3:
            FullySharded(model, group)
        stale(model, torch.optim.SGD(model.parameters(), 0.1), X)

    with pytest.raises(RuntimeError, match=r"changed in place|modified by an inplace operation"):
        Cluster(1 if stage == 0 else 2).run(program)


# ---- every optimizer that treats each element by itself ----

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "SGD up": lambda p: torch.optim.SGD(p, 0.01, weight_decay=0.1, maximize=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1, amsgrad=True),
    "Adam up": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, maximize=True),
    "AdamW, all at once": lambda p: torch.optim.AdamW(p, 0.1, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.1, fused=True),
    "SGD, all at once": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, foreach=True),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.1, weight_decay=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.1, weight_decay=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.1, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1, weight_decay=0.1, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1, weight_decay=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, 0.1, weight_decay=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.1, t0=1, weight_decay=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.1),
    "master weights": lambda p: MasterWeights(p, torch.optim.AdamW, torch.float64),
}


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_each_element_by_itself(make, stage):
    alone = net()
    train(alone, make(list(alone.parameters())), X, Y)

    def program(group):
        model = net()
        x, y = shard_batch(X, group), shard_batch(Y, group)
        if stage == 3:
            FullySharded(model, group)
            train(model, make(list(model.parameters())), x, y)
            return whole_parameters(model)
        zero = ShardedOptimizer(model, group, make)
        for _ in range(3):
            zero.zero_grad()
            F.mse_loss(model(x), y).backward()
            zero.reduce_gradients()
            zero.step()
        return weights(model)

    everywhere(program, weights(alone))


@pytest.mark.parametrize("make", [torch.optim.Adafactor, torch.optim.LBFGS, torch.optim.Muon])
def test_optimizers_that_look_at_all_of_a_parameter_are_refused(make):
    def program(group):
        model = net()
        FullySharded(model, group)
        optimizer = make(model.parameters())
        model(X).square().mean().backward()
        optimizer.step(lambda: model(X).square().mean()) if make is torch.optim.LBFGS else optimizer.step()

    with pytest.raises((RuntimeError, ValueError), match="0.weight|only supports 2D"):
        Cluster(2).run(program)


# ---- the norm ----


def test_pieces_are_known_to_clipping_and_unknown_to_pytorch():
    alone = net()
    alone(X).square().mean().backward()
    norm = nn.utils.get_total_norm([p.grad for p in alone.parameters()])

    def program(group, how):
        model = net()
        FullySharded(model, group)
        model(X).square().mean().backward()
        if how == "ours":
            return gradient_norm(model.parameters(), group), gradient_norm(model, group)
        if how == "pytorch":
            return nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return sum(p.grad.square().sum() for p in model.parameters())

    for size in (1, 2, 3):
        for found in Cluster(size).run(program, "ours"):
            assert all(float(x) == pytest.approx(float(norm), abs=1e-12) for x in found)
    for how in ("pytorch", "by hand"):
        with pytest.raises(RuntimeError, match=r"the gradient of 0.weight .* holds only .* clip_gradients\(pieces"):
            Cluster(2).run(program, how)


@pytest.mark.parametrize("stage", [1, 3])
def test_no_decay_below_two_dims(stage):
    def make(parameters):
        parameters = list(parameters)
        matrices = [p for p in parameters if len(whole_shape(p)) >= 2]
        others = [p for p in parameters if len(whole_shape(p)) < 2]
        assert len(matrices) == len(others) == 2
        return torch.optim.AdamW([{"params": matrices}, {"params": others, "weight_decay": 0.0}], 0.1, weight_decay=0.5)

    alone = net()
    train(alone, make(alone.parameters()), X, Y)

    def program(group):
        model = net()
        x, y = shard_batch(X, group), shard_batch(Y, group)
        if stage == 3:
            FullySharded(model, group)
            train(model, make(model.parameters()), x, y)
            return whole_parameters(model)
        zero = ShardedOptimizer(model, group, lambda pieces: MasterWeights(pieces, make, torch.float64))
        for _ in range(3):
            zero.zero_grad()
            F.mse_loss(model(x), y).backward()
            zero.reduce_gradients()
            zero.step()
        return weights(model)

    everywhere(program, weights(alone))


# ---- scalers and schedulers ----


@pytest.mark.parametrize("stage", [1, 3])
def test_an_infinity_in_one_piece_is_one_for_all(stage):
    def program(group, scaler_of):
        model = net()
        if stage == 3:
            FullySharded(model, group)
            optimizer, pieces = torch.optim.SGD(model.parameters(), 0.1), list(model.parameters())
        else:
            optimizer = ShardedOptimizer(model, group, lambda pieces: torch.optim.SGD(pieces, 0.1))
            pieces = optimizer.pieces
        scaler, seen = scaler_of(group), []
        for step in range(3):
            optimizer.zero_grad()
            before = whole_parameters(model)
            scaler.scale(F.mse_loss(model(shard_batch(X, group)), shard_batch(Y, group))).backward()
            if stage == 1:
                optimizer.reduce_gradients()
            if step == 1 and group.rank == 1:
                pieces[0].grad[0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
            stepped = any(not torch.equal(x, before[name]) for name, x in whole_parameters(model).items())
            seen.append((stepped, scaler.get_scale()))
        return seen, whole_parameters(model)

    outputs = Cluster(3).run(program, lambda group: ShardedGradScaler(group, init_scale=8.0))
    alone = net()
    train(alone, torch.optim.SGD(alone.parameters(), 0.1), X, Y, steps=2)
    for seen, found in outputs:
        assert seen == [(True, 8.0), (False, 4.0), (True, 4.0)]
        equal(found, weights(alone))
    with pytest.raises(RuntimeError, match=r"An infinity elsewhere would go unnoticed: use ShardedGradScaler\(group\)"):
        Cluster(2).run(program, lambda group: torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize("unscale", [False, True])
def test_a_scaler_and_master_weights(unscale):
    def program(group):
        model = net().half()
        optimizer = MasterWeights(model.parameters(), torch.optim.AdamW)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(model(X.half()).float().sum()).backward()
        average_gradients(model, group)
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)

    with pytest.raises(TypeError, match="GradScaler cannot reach the gradients of MasterWeights"):
        Cluster(2).run(program)


SCHEDULES = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=6),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
}


@pytest.mark.parametrize("around", ["zero", "masters", "both"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(schedule, around):
    def run(model, x, y, optimizer, reduce=lambda: None):
        rates = schedule(optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            reduce()
            optimizer.step()
            rates.step(*([1.0] if "Plateau" in type(rates).__name__ else []))

    alone = net()
    run(alone, X, Y, torch.optim.AdamW(alone.parameters(), 0.1))

    def program(group):
        model, x, y = net(), shard_batch(X, group), shard_batch(Y, group)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            adam = lambda pieces: torch.optim.AdamW(pieces, 0.1)  # noqa: E731
            masters = lambda pieces: MasterWeights(pieces, adam, torch.float64)  # noqa: E731
            if around == "masters":
                run(model, x, y, masters(model.parameters()), lambda: average_gradients(model, group))
            else:
                zero = ShardedOptimizer(model, group, adam if around == "zero" else masters)
                run(model, x, y, zero, zero.reduce_gradients)
        return weights(model)

    everywhere(program, weights(alone), sizes=(2,))


# ---- ZeRO 1 and 2: parameters that are views ----


def channels_last(model):
    model.to(memory_format=torch.channels_last)


def new_memory(model):
    for p in model.parameters():
        p.data = p.data.clone()


def halved(model):
    for p in model.parameters():
        p.data = p.data / 2


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("change", [channels_last, new_memory, halved])
def test_parameters_that_were_given_other_memory_still_train(change, stage):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3)).double()

    x = X.view(6, 1, 2, 2).expand(6, 2, 2, 2)
    alone = make()
    adam = lambda pieces: torch.optim.AdamW(pieces, 0.1)  # noqa: E731
    train(alone, adam(alone.parameters()), x, Y, 4, lambda step: change(alone) if step == 2 else None)

    def program(group):
        model = make()
        zero = ShardedOptimizer(model, group, adam)
        mine, y = shard_batch(x, group), shard_batch(Y, group)
        for step in range(4):
            if step == 2:
                change(model)
            zero.zero_grad()
            if stage == 2:
                with zero.reducing():
                    F.mse_loss(model(mine), y).backward()
            else:
                F.mse_loss(model(mine), y).backward()
                zero.reduce_gradients()
            zero.step()
        return weights(model)

    everywhere(program, weights(alone))


def replaced(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def assigned(model):
    model.load_state_dict({name: x.clone() for name, x in model.state_dict().items()}, assign=True)


def unfrozen(model):
    model[2].requires_grad_(True)


def added(model):
    model[1].extra = nn.Parameter(torch.ones(1).double())


def normed(model):
    old(nn.utils.weight_norm)(model[0])


def cast(model):
    model.float()


@pytest.mark.parametrize("when", ["before reducing", "before step"])
@pytest.mark.parametrize("change", [replaced, assigned, unfrozen, added, normed, cast])
def test_changes_that_would_not_train_are_named(change, when):
    def program(group):
        model = net()
        model[2].requires_grad_(change is not unfrozen)
        zero = ShardedOptimizer(model, group, torch.optim.SGD)
        if when == "before reducing":
            change(model)
        model(X.to(model[0].bias.dtype)).sum().backward()
        zero.reduce_gradients(allow_unused=True)
        change(model)
        zero.step()

    with pytest.raises(ValueError, match=r"on rank \d of 2: [0-2]\.\w+ .*(would not train|Change the model before)"):
        Cluster(2).run(program)


def test_frozen_later_it_stays():
    alone = net()
    train(alone, torch.optim.AdamW(alone.parameters(), 0.1), X, Y, 3, lambda s: alone[0].requires_grad_(s < 1))

    def program(group, stage):
        model = net()
        zero = ShardedOptimizer(model, group, lambda pieces: torch.optim.AdamW(pieces, 0.1), bucket_bytes=0)
        for step in range(3):
            model[0].requires_grad_(step < 1)
            zero.zero_grad()
            loss = F.mse_loss(model(shard_batch(X, group)), shard_batch(Y, group))
            if stage == 2:
                with zero.reducing():
                    loss.backward()
            else:
                loss.backward()
                zero.reduce_gradients()
            zero.step()
        return weights(model)

    for stage in (1, 2):
        everywhere(lambda group, stage=stage: program(group, stage), weights(alone))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ranges_say_what_each_device_holds(size):
    def program(group):
        model = net()
        zero = ShardedOptimizer(model, group, torch.optim.SGD, bucket_bytes=100)
        named = dict(model.named_parameters())
        assert list(zero.ranges) == list(named)
        for piece in zero.pieces:
            where = zero.ranges[piece.origin.name]
            whole = named[piece.origin.name].detach().flatten()
            assert torch.equal(piece.detach(), whole[where.start : where.stop])
        return zero.ranges

    outputs = Cluster(size).run(program)
    for name, p in net().named_parameters():
        assert [n for ranges in outputs for n in ranges[name]] == list(range(p.numel()))


def test_a_piece_says_what_of():
    def program(group):
        model = net()
        FullySharded(model, group)
        zero = ShardedOptimizer(net(), group, torch.optim.SGD)
        for pieces in (model.parameters(), zero.pieces):
            for piece in pieces:
                assert isinstance(piece, Piece)
                assert isinstance(piece, nn.Parameter)
                assert len(piece.origin.where) == piece.numel()
        clip_gradients(zero.pieces, group, 1.0)
        return [tuple(whole_shape(p)) for p in model.parameters()]

    assert Cluster(2).run(program)[1] == [(5, 4), (5,), (3, 5), (3,)]
