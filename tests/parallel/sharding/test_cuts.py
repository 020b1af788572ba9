"""Who sees a cut weight without its layer: lists of parameters, and optimizers that mix its elements."""

import pytest
import torch
from parallel.small_model import one_thread  # noqa: F401
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from lib import (
    Cluster,
    ColumnParallelLinear,
    ExpertGrid,
    GPTConfig,
    Llama,
    LlamaConfig,
    MasterWeights,
    Mesh,
    MixtureOfExperts,
    RoutingRule,
    ShardedGradScaler,
    gradient_norm,
)
from lib.parallel.gpt.model import GPT

X = torch.linspace(-1, 1, 48).view(12, 4).sin()
TOKENS = torch.arange(12).view(2, 6)


class Lamb(torch.optim.SGD):
    """One of those that are known by their name."""


class HomeMade(Lamb):
    """And one that is made of one."""


def layer_of(group):
    return ColumnParallelLinear(4, 6, group)


def experts_of(group):
    torch.manual_seed(0)
    return MixtureOfExperts(4, 8, RoutingRule(4, 2), group, shared=1)


def llama_of(group):
    torch.manual_seed(0)
    return Llama(LlamaConfig(layers=1, hidden=8, heads=2, kv_heads=2, inner=8, vocabulary=12, positions=8), group)


def gpt_end_of(group):
    """The last stage of a pipeline: it has the embedding for its head alone, and never calls it."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(layers=1, hidden=8, heads=2, vocabulary=12, positions=8), group)
    gpt.embedding.weight = nn.Parameter(gpt.embedding.weight.detach().clone())  # as assign=True leaves it
    return gpt


def backward(model, group, x=X):
    y = model(x) if x.is_floating_point() else model(x, targets=x)
    (y.square().sum() if y.ndim else y).backward()


def step(optimizer, **options):
    return lambda parameters: getattr(torch.optim, optimizer)(parameters, **options)


MIXING = {
    "Adafactor": step("Adafactor"),
    "Muon": step("Muon"),
    "Lamb": Lamb,
    "a child of it": HomeMade,
    "under master weights": lambda parameters: MasterWeights(parameters, step("Adafactor"), torch.float64),
}


@pytest.mark.parametrize("name", MIXING)
def test_optimizers_that_mix_the_elements_of_a_cut_weight(name):
    def program(group):
        layer = layer_of(group)
        optimizer = MIXING[name]([layer.weight])
        backward(layer, group)
        before = layer.weight.detach().clone()
        try:
            optimizer.step()
        finally:
            assert group.size == 1 or torch.equal(layer.weight, before), "no step was made"

    told = r"mixes the elements of a weight, and this device has a piece \(3, 4\) of one, Shard\(dim=0\) over the ranks"
    with pytest.raises(ValueError, match=told):
        Cluster(2).run(program)
    Cluster(1).run(program)


def test_lbfgs_mixes_all():
    def program(group):
        layer = layer_of(group)
        torch.optim.LBFGS(layer.parameters()).step(lambda: layer(X).square().sum())

    with pytest.raises(ValueError, match="LBFGS mixes the elements"):
        Cluster(2).run(program)


def test_experts_are_cut_too():
    def program(group):
        layer = experts_of(group)
        backward(layer, group)
        torch.optim.Adafactor(layer.experts.parameters()).step()

    with pytest.raises(ValueError, match=r"Adafactor mixes .* a piece \(2, 8, 4\) of one, ShardExperts.* \(0, 1\)"):
        Cluster(2).run(program)


def test_what_is_not_cut_may_be_mixed():
    def program(group):
        layer, whole = layer_of(group), nn.Linear(6, 2)
        whole(layer(X).repeat(1, group.size)).sum().backward()
        torch.optim.Muon([whole.weight]).step()
        torch.optim.Adafactor(experts_of(group).shared.parameters()).step()
        torch.optim.AdamW(layer.parameters()).step()

    Cluster(2).run(program)


MADE = {"experts": (experts_of, X), "llama": (llama_of, TOKENS), "gpt": (gpt_end_of, TOKENS)}


@pytest.mark.parametrize("name", MADE)
def test_a_list_of_parameters_knows_what_is_cut(name):
    """The norm of the list is that of the module. It once took experts, and a head that is no layer, for whole."""
    make, x = MADE[name]

    def program(group):
        model = make(group)
        backward(model.double(), group, x.double() if x.is_floating_point() else x)
        return [float(gradient_norm(some, group)) for some in (model, list(model.parameters()))]

    for of_module, of_list in Cluster(2).run(program):
        assert of_list == pytest.approx(of_module, rel=1e-12)


def test_replicas_of_layers_that_one_device_has_whole():
    """Such a layer says how it would be cut. It is not, and was once counted as often as there are replicas."""

    def program(group):
        layer = layer_of(Mesh(group, dp=2, tp=1).tp)
        backward(layer, group)
        alone = torch.nn.utils.get_total_norm([p.grad for p in layer.parameters()])
        return float(gradient_norm(layer, group)), pytest.approx(float(alone), rel=1e-6)

    for found, expected in Cluster(2).run(program):
        assert found == expected


def test_the_last_stage_of_a_pipeline_knows_that_its_head_is_cut():
    def program(group):
        gpt = gpt_end_of(group)
        gpt.head(torch.ones(1, 2, 8)).sum().backward()
        return gpt.embedding.weight.cut_over

    assert Cluster(2).run(program) == [(0, 1)] * 2


def test_experts_cut_twice_are_not_those_of_one_group():
    def program(group):
        layer = MixtureOfExperts(4, 8, RoutingRule(4, 2), ExpertGrid.over(group, tensor_parallel=2))
        backward(layer, group)
        gradient_norm(list(layer.experts.parameters()), Mesh(group, experts=2, tensor=2).tensor)

    with pytest.raises(ValueError, match=r"a parameter \(2, 4, 4\).* not cut over"):
        Cluster(4).run(program)


COMPUTED = {
    "experts": lambda model: spectral_norm(model.experts, "up"),
    "llama": lambda model: spectral_norm(model.head),
    "gpt": lambda model: spectral_norm(model.embedding),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_computed_from_pieces_is_refused_where_no_layer_is_called(name):
    make, x = MADE[name]

    def program(group):
        model = make(group)
        COMPUTED[name](model)
        if name == "gpt":
            model.head(torch.ones(1, 2, 8))
        else:
            backward(model, group, x)

    with pytest.raises(ValueError, match="its (up|weight) is computed from other parameters"):
        Cluster(2).run(program)


def test_an_infinity_in_one_piece_is_one_for_all():
    """A plain GradScaler would let the other device step, and the scales would come apart."""

    def program(group):
        layer, scaler = layer_of(group), ShardedGradScaler(group, init_scale=4.0)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        before = layer.weight.detach().clone()
        scaler.scale(layer(X).sum()).backward()
        if group.rank == 1:
            layer.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        return torch.equal(layer.weight, before), scaler.get_scale()

    assert Cluster(2).run(program) == [(True, 2.0)] * 2
