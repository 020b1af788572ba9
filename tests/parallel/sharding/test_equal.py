"""`equal_to_one_device` says yes to what is equal, and names what is not: every kind of mistake is made here once."""

import math
from functools import partial

import pytest
import torch
from parallel.dense_transformer import DenseMLP
from torch import nn

from lib import (
    GPT,
    ColumnParallelLinear,
    GPTConfig,
    ParallelMLP,
    Replicate,
    SequenceGPT,
    SequenceMLP,
    Shard,
    copy_to,
    equal_to_one_device,
    reduce_from,
    shard,
)
from lib.devices.counts import counted

X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3))


def program(group, x, w, bug=None):
    """The squared length of every row of x @ w, w by columns."""
    if bug != "no f":
        x = copy_to(x, group)
        w = copy_to(w, group)
    y = (x @ shard(w, group, 1)).square().sum(-1)
    return y if bug == "no g" else reduce_from(y, group)


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_a_right_program(devices):
    w = torch.randn(8, 5)
    found = equal_to_one_device(lambda group: partial(program, group), X, w, devices=devices)
    assert found
    assert found.largest < 1e-12
    assert found.differences.keys() == {"output", "input 0", "input 1"}
    assert str(found) == f"{counted(devices, 'device')}: 3 of 3 tensors equal to 1e-12"


@pytest.mark.parametrize(("bug", "wrong"), [("no f", {"input 0", "input 1"}), ("no g", {"output"})])
def test_a_wrong_one_and_where(bug, wrong):
    w = torch.randn(8, 5)
    found = equal_to_one_device(lambda group: partial(program, group, bug=bug), X, w, devices=2)
    assert not found
    assert wrong <= set(found.unequal)
    assert f"; {found.unequal[0]} differs by " in str(found)
    assert equal_to_one_device(lambda group: partial(program, group, bug=bug), X, w, devices=1)


@pytest.mark.parametrize(("make", "cut"), [(ParallelMLP, Replicate()), (SequenceMLP, Shard(1))])
def test_a_layer_its_input_cut_or_not(make, cut):
    found = equal_to_one_device(lambda group: make(8, group), X, devices=4, cut=cut, output=cut)
    assert found
    assert len(found.differences) == 2 + 4


def test_against_a_dense_module():
    dense = DenseMLP(hidden=8, inner=32)
    assert equal_to_one_device(lambda group: ParallelMLP(8, group), X, devices=4, against=dense)
    other = DenseMLP(hidden=8, inner=32, approximate="tanh")
    assert not equal_to_one_device(lambda group: ParallelMLP(8, group), X, devices=4, against=other)


@pytest.mark.parametrize("make", [GPT, SequenceGPT])
def test_a_loss_of_whole_numbers(make):
    config = GPTConfig(layers=1, hidden=8, heads=4, vocabulary=11, positions=6)
    tokens = torch.randint(11, (2, 6))
    found = equal_to_one_device(lambda group: make(config, group), tokens, tokens, devices=4)
    assert found
    assert found.differences.keys() == {"output", *config.shapes()}


class Forgetful(nn.Linear):
    """Its weight gets no gradient on any device but the first."""

    def __init__(self, group):
        super().__init__(8, 3)
        self.rank = group.rank

    def forward(self, x):
        return nn.functional.linear(x, self.weight if self.rank == 0 else self.weight.detach(), self.bias)


def test_a_gradient_that_is_missing_and_one_that_is_no_number():
    found = equal_to_one_device(Forgetful, X, devices=2)
    assert found.unequal == ["weight"]
    assert found.largest == math.inf
    found = equal_to_one_device(lambda group: lambda x: x / (2 - group.size), X, devices=2)
    assert found.largest == math.inf


def test_a_state_of_ones_own():
    state = {"weight": torch.full((6, 8), 0.5, dtype=torch.float64), "bias": torch.zeros(6, dtype=torch.float64)}
    make = partial(ColumnParallelLinear, 8, 6, gather_output=True)
    seen = []

    def watched(group):
        layer = make(group)
        layer.register_forward_hook(lambda module, x, y: seen.append(float(module.weight.detach().sum())))
        return layer

    assert equal_to_one_device(watched, X, devices=3, state=state)
    assert seen == [24.0, 8.0, 8.0, 8.0]


def test_another_shape_than_said():
    with pytest.raises(ValueError) as error:
        equal_to_one_device(lambda group: ColumnParallelLinear(8, 6, group), X, devices=3)
    assert "output has shape (2, 6, 2), but this device's piece of it has (2, 6, 6)" in str(error.value)
