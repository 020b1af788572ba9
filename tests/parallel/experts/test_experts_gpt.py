"""The GPT with experts trains on any grid like on one device, and has the parameters that its config says."""

from dataclasses import replace

import pytest
import torch

from lib.devices import Cluster
from lib.examples.text import alice
from lib.examples.train_experts import train_experts
from lib.parallel.experts.model import ExpertGPT, ExpertGPTConfig

TEXT = alice()
CONFIG = ExpertGPTConfig(
    1, 16, 2, vocabulary=TEXT.vocabulary, positions=16, experts=4, inner=24, deviation=0.1, balance=0.01, z=1e-3
)
CONFIGS = {
    "losses": CONFIG,
    "bias, shared, capacity": replace(CONFIG, balance=0, bias_rate=0.01, shared=1, capacity_factor=1.0),
    "expert choice": replace(CONFIG, expert_choice=True),
}


def train(group, config, *grid):
    return train_experts(group, config, TEXT, 4, *grid, batch=6, length=16, dtype=torch.float64)[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_like_one_device(name):
    expected = Cluster(1).run(train, CONFIGS[name])[0]
    assert expected.losses[-1] < expected.losses[0] - 0.5
    for size, *grid in [(2, 2), (4, 2), (4, 2, 2), (4, 4)]:  # (4, ...): 6 texts over 4 devices, unequal shares
        for found in Cluster(size).run(train, CONFIGS[name], *grid):
            for ours, theirs in ((found.losses, expected.losses), (found.norms, expected.norms)):
                assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-9
            assert torch.equal(found.loads, expected.loads)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_config(name):
    config = CONFIGS[name]
    model = Cluster(1).run(lambda group: ExpertGPT(config, group))[0]
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    padded = shapes.pop("embedding.weight")
    expected = config.shapes()
    assert padded[1:] == expected.pop("embedding.weight")[1:]
    assert shapes == expected


def test_weights_do_not_depend_on_the_grid():
    def loads(group, *grid):
        return train(group, CONFIG, *grid).loads

    whole = Cluster(1).run(loads)[0]
    assert (whole.sum(-1) == 6 * 16 * 2).all()
    assert torch.equal(Cluster(4).run(loads, 2, 2)[3], whole)
