"""Copies of layers, what cannot be saved, and buffers, which are loaded, saved and checked like parameters."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lib import (
    GPT,
    Cluster,
    ColumnParallelLinear,
    GPTConfig,
    ParallelBlock,
    ParallelMLP,
    SequenceBlock,
    dense_state,
    load_dense,
)

CONFIG = GPTConfig(1, 8, 4, vocabulary=11, positions=6)
MAKE = {
    "linear": lambda group: ColumnParallelLinear(8, 8, group, gather_output=True),
    "MLP": lambda group: ParallelMLP(8, group),
    "block": lambda group: ParallelBlock(8, 4, group),
    "block with shared keys": lambda group: ParallelBlock(8, 4, group, 2),
    "sequence": lambda group: SequenceBlock(8, 4, group),
}


@pytest.mark.parametrize("kind", MAKE)
def test_a_copy_has_weights_of_its_own_and_talks_to_the_same_devices(kind):
    def program(group):
        layer = MAKE[kind](group)
        average = copy.deepcopy(layer)
        with torch.no_grad():
            for parameter in average.parameters():
                parameter.zero_()
        x = torch.ones(1, 4, 8)
        return layer(x).abs().sum().item(), (
            average(x) - (x if "MLP" not in kind and kind != "linear" else 0)
        ).abs().max().item()

    for mine, copied in Cluster(4).run(program):
        assert mine > 0
        assert copied == 0


def test_a_copy_of_a_model_trains_apart():
    def program(group):
        model = GPT(CONFIG, group)
        other = copy.deepcopy(model)
        tokens = torch.ones(1, 6, dtype=torch.long)
        other(tokens, tokens).backward()
        return all(p.grad is None for p in model.parameters()), all(p.grad is not None for p in other.parameters())

    assert Cluster(2).run(program) == [(True, True)] * 2


@pytest.mark.parametrize("save", [pickle.dumps, lambda layer: torch.save(layer, "never.pt")], ids=["pickle", "save"])
def test_a_layer_that_is_saved_whole(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError) as error:
        Cluster(2).run(lambda group: save(ParallelMLP(8, group)))
    assert "a Group cannot be saved: it is a connection between running devices" in str(error.value)
    assert "Save the state_dict() of a module" in str(error.value)


def test_its_state_is_saved():
    def program(group):
        layer, other = ParallelMLP(8, group), ParallelMLP(8, group)
        other.load_state_dict(pickle.loads(pickle.dumps(layer.state_dict())))
        return all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))

    assert Cluster(2).run(program) == [True, True]


class Net(nn.Module):
    """A linear layer, dense or by columns, and buffers: statistics, a mask, and one that no state holds."""

    def __init__(self, up):
        super().__init__()
        self.up, self.norm = up, nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.ones(4, 4).tril())
        self.register_buffer("rotary", torch.ones(3), persistent=False)


def split(group, state):
    net = Net(ColumnParallelLinear(4, 4, group, gather_output=True))
    load_dense(net, state, group)
    return net


@pytest.fixture
def dense():
    net = Net(nn.Linear(4, 4))
    net.norm.running_mean += 3
    net.mask *= 2
    return net


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_buffers_there_and_back(dense, devices):
    nets = Cluster(devices).run(split, dense.state_dict())
    for net in nets:
        assert torch.equal(net.norm.running_mean, dense.norm.running_mean)
        assert torch.equal(net.mask, dense.mask)
    state = dense_state(nets)
    assert state.keys() == dense.state_dict().keys()
    Net(nn.Linear(4, 4)).load_state_dict(state)
    assert all(torch.equal(state[name], x) for name, x in dense.state_dict().items())


def test_a_buffer_that_is_left_out_is_named(dense):
    with pytest.raises(ValueError, match="missing in the state: mask, norm.num_batches_tracked, norm.running_mean"):
        Cluster(2).run(split, dict(dense.named_parameters()))
    with pytest.raises(ValueError, match="unknown to the module: rotary"):
        Cluster(2).run(split, {**dense.state_dict(), "rotary": torch.ones(3)})


def test_buffers_that_came_apart_are_named(dense):
    nets = Cluster(2).run(split, dense.state_dict())
    nets[1].norm.running_var += 1
    with pytest.raises(ValueError, match="norm.running_var on rank 1 differs from the copies of it"):
        dense_state(nets)
