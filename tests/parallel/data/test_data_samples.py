"""Layers that look at the whole batch: with a part of it they are not those of one device, and say so."""

import pytest
import torch
from parallel.small_model import one_thread  # noqa: F401
from torch import nn

from lib import (
    Cluster,
    ExpertGrid,
    FullySharded,
    ShardedOptimizer,
    average_gradients,
    averaging,
    shard_batch,
    sum_gradients,
)

X = torch.linspace(-1, 1, 48, dtype=torch.float64).view(4, 3, 4).sin()
TOKENS = torch.arange(12).view(4, 3)


class Averaged:
    def __init__(self, model, group):
        self.model, self.group, self.optimizer = model, group, torch.optim.SGD(model.parameters(), lr=0.1)

    def step(self, x):
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        average_gradients(self.model, self.group)
        self.optimizer.step()


class Overlapped(Averaged):
    def step(self, x):
        self.optimizer.zero_grad()
        with averaging(self.model, self.group):
            self.model(x).square().mean().backward()
        self.optimizer.step()


class Summed(Averaged):
    def step(self, x):
        self.optimizer.zero_grad()
        (self.model(x).square().mean() / self.group.size).backward()
        sum_gradients(self.model, ExpertGrid.over(self.group))
        self.optimizer.step()


class Zero:
    def __init__(self, model, group):
        self.model = model
        self.optimizer = ShardedOptimizer(model, group, lambda pieces: torch.optim.SGD(pieces, lr=0.1))

    def step(self, x):
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        self.optimizer.reduce_gradients()
        self.optimizer.step()


class Sharded:
    def __init__(self, model, group):
        FullySharded(model, group)
        self.model, self.optimizer = model, torch.optim.SGD(model.parameters(), lr=0.1)

    def step(self, x):
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        self.optimizer.step()


LAYERS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3), X, "takes the statistics of its batch.* GroupNorm"),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), X, "keeps the statistics"),
    "Embedding": (lambda: nn.Embedding(12, 4, max_norm=0.5), TOKENS, "shortens the rows.* max_norm"),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(12, 4, scale_grad_by_freq=True), TOKENS, "counts the tokens"),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("train", [Averaged, Overlapped, Summed, Zero, Sharded])
def test_layers_that_look_at_the_batch(train, name):
    make, x, told = LAYERS[name]

    def program(group):
        model = nn.Sequential(make().double(), nn.Linear(4, 2).double())
        train(model, group).step(shard_batch(x, group))

    with pytest.raises(ValueError, match=rf"on rank 0 of 2: 0 \({name}\) {told}"):
        Cluster(2).run(program)
    if (train, name) != (Sharded, "Embedding"):  # there, what is gathered may not be written to
        Cluster(1).run(program)


@pytest.mark.parametrize("train", [Averaged, Zero])
def test_they_are_looked_at_in_each_step(train):
    def program(group):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(4, 2)).double().eval()
        training = train(model, group)
        training.step(shard_batch(X, group))
        model.train()
        training.step(shard_batch(X, group))

    with pytest.raises(ValueError, match=r"0 \(BatchNorm1d\) takes the statistics"):
        Cluster(2).run(program)


@pytest.mark.parametrize("train", [Averaged, Overlapped, Summed, Zero, Sharded])
def test_statistics_that_stand_still_are_right(train):
    """An eval() BatchNorm, and layers of each sample alone: the numbers of one device."""

    def program(group):
        torch.manual_seed(0)
        norms = nn.BatchNorm1d(3).eval(), nn.GroupNorm(1, 3), nn.InstanceNorm1d(3, affine=True)
        model = nn.Sequential(*norms, nn.Linear(4, 2)).double()
        model[0].running_mean += 0.5
        training = train(model, group)
        for _ in range(2):
            training.step(shard_batch(X, group))
        return model(X).detach()

    (expected,) = Cluster(1).run(program)
    for found in Cluster(2).run(program):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
