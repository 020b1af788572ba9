"""A training saved on one grid of devices goes on on any other."""

from dataclasses import replace

import pytest
import torch

from lib import MasterWeights, ShardedOptimizer, shard_batch
from lib.devices import Cluster
from lib.examples import checkpoint
from lib.examples.recipe import Recipe
from lib.examples.text import Characters, alice_text, coded
from lib.examples.trainer import Trainer
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.recovery import checkpoint as files
from lib.parallel.recovery.blocks import Block
from lib.parallel.recovery.saving import save
from lib.parallel.recovery.state import all_held, parameters_held

TEXT = coded(alice_text()[:4000], Characters("".join(sorted(set(alice_text())))))
CONFIG = GPTConfig(layers=2, hidden=16, heads=4, vocabulary=TEXT.vocabulary, positions=8)
SAME = Recipe(steps=4, batch=8, length=8, clip=0.5, dtype=torch.float64)
# devices, replicas, stages, ZeRO, sequence parallel
GRIDS = [
    (1, 1, 1, 0, False), (2, 2, 1, 1, False), (2, 1, 2, 0, False), (3, 3, 1, 3, False), (4, 2, 1, 2, True),
    (4, 1, 1, 0, False), (8, 2, 2, 0, True),
]  # fmt: skip


def recipe_of(grid, **more):
    _, replicas, stages, zero, sequence = grid
    kind = {"data_parallel": replicas, "pipeline_parallel": stages, "zero": zero, "sequence_parallel": sequence}
    return replace(SAME, accumulate=stages, **kind, **more)


def train(group, recipe, folder, stop, resume=False):
    """Steps up to `stop`, and saves; the losses, and what this device holds then."""
    trainer = Trainer(group, CONFIG, recipe)
    done = checkpoint.load(folder, trainer, CONFIG, group)[0] if resume else 0
    losses = []
    for step, batch in enumerate(TEXT.batches(recipe.steps, recipe.batch, recipe.length, recipe.seed)):
        if done <= step < stop:
            losses.append(trainer.mesh.dp.all_reduce(trainer.step(*batch)[0]).item())
    if folder and not resume:
        checkpoint.save(folder, stop, trainer, CONFIG, group)
    return losses, all_held(parameters_held(trainer.model, trainer.mesh.tp), trainer.optimizer)


def whole_of(everyone):
    """All tensors of the training, put together from what all devices hold."""
    tensors = {}
    for one in (one for held in everyone for one in held):
        tensor = tensors.setdefault(one.name, torch.full(one.whole, float("nan"), dtype=one.x.dtype))
        rows = one.rows_held()
        for block, where in one.blocks():
            tensor[block.inside(Block((0,) * len(one.whole), one.whole))] = rows[where]
    return tensors


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """For each grid: the checkpoint after two steps, what its devices hold, and the whole of it."""
    found = {}
    for grid in GRIDS:
        folder = tmp_path_factory.mktemp("grid")
        held = [held for _, held in Cluster(grid[0]).run(train, recipe_of(grid), folder, 2)]
        found[grid] = files.complete(folder)[0], held, whole_of(held)
    return found


@pytest.fixture(scope="module")
def uninterrupted():
    return Cluster(1).run(train, SAME, None, 4)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_was_saved_on_any_grid_is_there_bit_by_bit_on_this_one(grid, saved):
    """What writes blocks does not know who will read them: each grid is read by itself and by another."""
    _, everyone, _ = saved[grid]
    at = GRIDS.index(grid)
    for place, _, expected in (saved[GRIDS[(at + steps) % len(GRIDS)]] for steps in (0, 3)):
        for held in everyone:
            for one in held:
                one.fill(torch.zeros(tuple(map(len, one.rows)), dtype=one.x.dtype))
            files.load(place, held)
        found = whole_of(everyone)
        assert found.keys() == expected.keys()
        assert {name.partition(".")[0] for name in found} == {"parameter", "exp_avg", "exp_avg_sq", "step"}
        for name, x in expected.items():
            assert torch.equal(found[name], x), name


@pytest.mark.parametrize(("before", "after"), list(zip(GRIDS, GRIDS[1:] + GRIDS[:1], strict=True)), ids=str)
def test_the_training_goes_on_as_if_nothing_had_happened(before, after, saved, uninterrupted):
    results = Cluster(after[0]).run(train, recipe_of(after), saved[before][0].parent, 4, resume=True)
    assert results[0][0] == pytest.approx(uninterrupted[0][0][2:], rel=1e-10)
    expected = whole_of(held for _, held in uninterrupted)
    for name, x in whole_of(held for _, held in results).items():
        torch.testing.assert_close(x, expected[name], rtol=1e-9, atol=1e-10)


def test_on_the_same_grid_it_goes_on_bit_by_bit(saved):
    grid = (4, 2, 1, 2, True)
    whole = Cluster(4).run(train, recipe_of(grid), None, 4)
    again = Cluster(4).run(train, recipe_of(grid), saved[grid][0].parent, 4, resume=True)
    assert again[0][0] == whole[0][0][2:]
    expected = whole_of(held for _, held in whole)
    for name, x in whole_of(held for _, held in again).items():
        assert torch.equal(x, expected[name]), name


def test_a_device_reads_only_the_blocks_it_needs(saved):
    """Of tensors that are cut, a half; what all hold (norms, biases of rows) is read whole."""
    place, _, tensors = saved[1, 1, 1, 0, False]

    def program(group):
        trainer = Trainer(group, CONFIG, recipe_of((2, 2, 1, 3, False)))
        there = files.manifest_of(place)["tensors"]
        return files.load(place, all_held(parameters_held(trainer.model, trainer.mesh.tp), trainer.optimizer, there))

    read = Cluster(2).run(program)
    steps = sum(x.nbytes for x in tensors.values() if x.ndim == 0)
    assert sum(read) == sum(x.nbytes for x in tensors.values()) + steps  # each number once, but for Adam's counts


OPTIMIZERS = {
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),  # beside its steps it counts a product
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),  # counts in float32 whatever the default
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "masters": lambda p: MasterWeights(p, lambda masters: torch.optim.AdamW(masters, lr=0.1)),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer_goes_on_where_it_was(make, tmp_path):
    x = torch.linspace(-1, 1, 32, dtype=torch.float64).view(8, 4).sin()

    def program(group, steps, resume=False):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        model.scale = torch.nn.Parameter(torch.tensor(2.0))  # a number too, but its moments lie with its piece
        zero = ShardedOptimizer(model, group, make)
        if resume:
            place = tmp_path / "step-000002"
            there = files.manifest_of(place)["tensors"]
            held = all_held(parameters_held(model, group), zero, there)
            assert len({one.name for one in held}) == len(held)
            files.load(place, held)
        for step in range(steps):
            if step == 2 and not resume:
                save(tmp_path, 2, all_held(parameters_held(model, group), zero), {}, group)
            zero.zero_grad()
            (model.scale * model(shard_batch(x, group))).square().mean().backward()
            zero.reduce_gradients()
            zero.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    right = Cluster(2).run(program, 4)[0]
    for found in Cluster(4).run(program, 2, True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


def test_each_of_several_optimizers_gets_back_its_own(tmp_path):
    def program(group):
        model = torch.nn.ParameterDict({"w": torch.ones(2), "w2": torch.ones(2)})
        both = [torch.optim.SGD([model["w"]], lr=0.1, momentum=0.9), torch.optim.AdamW([model["w2"]], lr=0.1)]
        for optimizer in both:
            (model["w"] * model["w2"]).sum().backward()
            optimizer.step()
        held = parameters_held(model, group)
        place = save(tmp_path, 1, all_held(held, both), {}, group)
        anew = [torch.optim.SGD([model["w"]], lr=0.1, momentum=0.9), torch.optim.AdamW([model["w2"]], lr=0.1)]
        files.load(place, all_held(held, anew, files.manifest_of(place)["tensors"]))
        return [set(optimizer.state[p]) for optimizer, p in zip(anew, model.values(), strict=True)]

    assert Cluster(1).run(program) == [[{"momentum_buffer"}, {"exp_avg", "exp_avg_sq", "step"}]]


def test_what_an_optimizer_keeps_in_another_shape_is_refused():
    """Of a square weight Adafactor's row and column would be read as two matrices, and it would go on with those."""

    def program(group):
        model = torch.nn.Linear(4, 4, bias=False)
        optimizer = torch.optim.Adafactor(model.parameters())
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        all_held(parameters_held(model, group), optimizer)

    with pytest.raises(ValueError, match=r"Adafactor keeps row_var \(4, 1\) of weight \(4, 4\)"):
        Cluster(1).run(program)
