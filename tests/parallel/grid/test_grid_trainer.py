"""Every way of splitting at once is one device: losses, norms, all weights, on every valid grid of 1 to 16 devices."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from parallel.small_model import one_thread  # noqa: F401

from lib import GPT, Cluster, ExpertGPTConfig, GPTConfig, gradient_norm
from lib.parallel.grid.config import ParallelConfig, valid_configs
from lib.parallel.grid.trainer import GridTrainer

BATCH, LENGTH = 4, 8
SMALL = GPTConfig(layers=2, hidden=8, heads=2, vocabulary=10, positions=LENGTH, deviation=0.3)
DENSE = replace(SMALL, layers=4, heads=4)
EXPERTS = ExpertGPTConfig(4, 8, 4, vocabulary=10, positions=LENGTH, deviation=0.3, experts=4, k=2, inner=8)


def sgd(parameters):
    """Adam would hide a gradient that is a factor too large."""
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def train(group, config, model, steps=1, make=sgd, right=None, **options):
    """Losses, norms and weights; or how far the worst is from those that are right."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    trainer = GridTrainer(group, config, model, BATCH, LENGTH, make, **options)
    texts = torch.randint(10, (steps, 2, BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    told = torch.tensor([[x.item() for x in trainer.step(*texts_of_a_step)] for texts_of_a_step in texts])
    if right is None:
        return told, {owner.name: owner.parameter.detach().clone() for owner in trainer.owners}
    tp = trainer.groups.over("tp")
    off = {"losses and norms": (told - right[0]).abs().max()}
    for owner in trainer.owners:
        piece = owner.layout.piece(right[1][owner.name], tp.size, tp.rank)
        off[owner.name] = (owner.parameter - piece).detach().abs().max()
    return max((float(x), name) for name, x in off.items()), set(off)


@cache
def one_device(model, steps=1, make=sgd, clip=None):
    """The same, not cut."""
    return Cluster(1).run(train, ParallelConfig(), model, steps, make, clip=clip)[0]


def check(config, model, steps=1, make=sgd, clip=None):
    right = one_device(model, steps, make, clip)
    found = Cluster(config.devices).run(train, config, model, steps, make, right, clip=clip)
    worst, name = max(worst for worst, _ in found)
    assert worst < 1e-10, f"{config}: {name} differs by {worst:.1e}"
    held = set().union(*(names for _, names in found))
    assert held == {*right[1], "losses and norms"}  # no weight is forgotten between the stages


def grids(devices):
    """Every valid grid, and with each one a few of the options that do not change the grid: in turn, so that all pairs
    come up somewhere."""
    for i, config in enumerate(valid_configs(devices, SMALL, LENGTH, BATCH)):
        options = {
            "sequence_parallel": config.tp > 1 and i % 2 == 0,
            "zero": int(i % 3 > 0),
            "recompute": (None, "selective", "full")[i % 3],
        }
        turned = replace(config, **options)
        yield config if turned.problems(devices, SMALL, LENGTH, BATCH) else turned


@pytest.mark.parametrize("devices", [n for n in range(1, 17) if any(valid_configs(n, SMALL, LENGTH, BATCH))])
def test_every_grid_is_one_device(devices):
    for config in grids(devices):
        check(config, SMALL)


@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(dp=2, pp=2, tp=2, micro_batches=2, chunks=2, sequence_parallel=True, zero=1, recompute="full"),
        ParallelConfig(pp=4, tp=2, micro_batches=4, sequence_parallel=True),
    ],
    ids=str,
)
def test_more_of_each_at_once_with_adam_and_clipping(config):
    """The chapter takes the first of these through 20 steps."""
    check(config, DENSE, steps=2, make=adam, clip=0.5)


@pytest.mark.parametrize(
    "config",
    [
        ParallelConfig(dp=4, ep=2, zero=1),
        ParallelConfig(dp=2, ep=2, cp=2),
        ParallelConfig(dp=2, ep=2, tp=2, sequence_parallel=True, zero=1, recompute="full"),
        ParallelConfig(dp=2, ep=2, pp=2, cp=2, tp=2, micro_batches=2, chunks=2, sequence_parallel=True, zero=1),
    ],
    ids=str,
)
def test_experts_beside_the_others(config):
    check(config, EXPERTS, clip=0.5)


def test_another_order_of_the_axes_is_the_same_model():
    config = ParallelConfig(dp=2, pp=2, tp=2, micro_batches=2, zero=1)
    right = one_device(DENSE)
    found = Cluster(8).run(train, config, DENSE, right=right, order=("tp", "cp", "dp", "pp"))
    assert max(worst for (worst, _), _ in found) < 1e-10


def test_what_cannot_be_is_refused_before_anything_is_built():
    config = ParallelConfig(dp=2, tp=3)
    with pytest.raises(ValueError, match=r"on 4 devices: 4 rules are broken\n  devices: .*\n  heads: .*\n  MLP"):
        Cluster(4).run(train, replace(config, pp=3), DENSE)
    with pytest.raises(ValueError, match="zero=3; it has 0 and 1"):
        Cluster(2).run(train, ParallelConfig(dp=2, zero=3), DENSE)
    with pytest.raises(ValueError, match=r"order=\('dp', 'tp'\) must name pp, dp, cp, tp"):
        Cluster(2).run(train, ParallelConfig(dp=2), DENSE, order=("dp", "tp"))


@pytest.mark.parametrize(
    "config",
    [ParallelConfig(dp=2), ParallelConfig(tp=2), ParallelConfig(cp=2), ParallelConfig(pp=2, micro_batches=2)],
    ids=str,
)
def test_targets_that_do_not_count(config):
    """The mean is that over those that do, wherever they are: the loss of the GPT itself."""
    texts = torch.randint(10, (2, BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    tokens, targets = texts
    targets[:2] = -100
    targets[3, 2:] = -100

    def program(group):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        return GridTrainer(group, config, SMALL, BATCH, LENGTH, sgd).step(tokens, targets)

    def alone(group):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        gpt = GPT(SMALL, group)
        loss = gpt(tokens, targets)
        loss.backward()
        return float(loss.detach()), float(gradient_norm(gpt, group))

    right = Cluster(1).run(alone)[0]
    for found in Cluster(config.devices).run(program):
        assert [float(x) for x in found] == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize(
    ("config", "alike"),
    [
        (ParallelConfig(dp=2), False),
        (ParallelConfig(dp=2, ep=2), False),
        (ParallelConfig(tp=2), True),
        (ParallelConfig(pp=2, micro_batches=2), False),
    ],
    ids=str,
)
def test_what_is_dropped(config, alike):
    """Replicas and stages draw numbers of their own; devices with the same activations the same ones."""

    def program(group):
        model = replace(EXPERTS if config.ep > 1 else SMALL, dropout=0.5)
        trainer = GridTrainer(group, config, model, BATCH, LENGTH, sgd)
        drawn = []
        for block in trainer.gpt.blocks.values():
            block.register_forward_pre_hook(lambda *_: drawn.append(torch.random.get_rng_state().sum()))
        trainer.step(torch.ones(BATCH, LENGTH, dtype=torch.long), torch.ones(BATCH, LENGTH, dtype=torch.long))
        return drawn

    first, second = Cluster(2).run(program)
    assert (first == second) == alike
    assert alike or not set(map(int, first)) & set(map(int, second))
