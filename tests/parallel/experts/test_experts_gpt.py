"""The GPT with experts trains on any grid like on one device, takes and gives dense weights, and writes."""

from dataclasses import replace

import pytest
import torch

from lib import ExpertGrid, generate, load_dense
from lib.devices import Cluster
from lib.examples.text import alice
from lib.examples.train_experts import train_experts
from lib.parallel.experts.model import ExpertGPT, ExpertGPTConfig, expert_state

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
    grids = [(2, 2), (4, 2), (4, 2, 2), (4, 4)]  # (4, ...): 6 texts over 4 devices, unequal shares
    for size, *grid in grids if name == "losses" else [grids[0], grids[2]]:
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


GRIDS = [(2, 2, 1), (4, 2, 1), (4, 2, 2), (3, 3, 1)]  # devices, over how many experts are divided, and each is cut
PROMPT = TEXT.tokens[:12].view(2, 6)


def on_grid(group, config, ep, tp, state):
    model = ExpertGPT(config, ExpertGrid.over(group, ep, tp)).double()
    if state is not None:
        load_dense(model, state, model.group)
    return model


@pytest.fixture(scope="module", params=["losses", "bias, shared, capacity"])
def dense(request):
    """A config, random weights, and what one device writes with them."""
    config = CONFIGS[request.param]

    def program(group):
        torch.manual_seed(3)
        model = on_grid(group, config, 1, 1, None)
        for p in model.parameters():
            p.data.add_(torch.randn_like(p), alpha=0.2)
        return expert_state([model]), generate(model, PROMPT, 5), generate(model, PROMPT, 5, temperature=1.0, seed=5)

    return config, *Cluster(1).run(program)[0]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_loads_dense_weights_and_writes_the_same_text(dense, grid):
    config, state, likely, drawn = dense
    size, ep, tp = grid

    def program(group):
        model = on_grid(group, config, ep, tp, state)
        assert torch.equal(generate(model, PROMPT, 5), likely)
        assert torch.equal(generate(model, PROMPT, 5, temperature=1.0, seed=5), drawn)
        assert torch.equal(generate(model, PROMPT, 5, cache=False), likely), (
            "a cache must change nothing, nor a capacity"
        )
        mine = PROMPT[:1] if model.grid.batch.rank % 2 else PROMPT[1:]
        assert torch.equal(generate(model, mine, 5)[0], likely[1 - model.grid.batch.rank % 2]), "a text of its own"
        return model

    models = Cluster(size).run(program)
    found = expert_state(models)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_copies_that_differ_are_named():
    models = Cluster(4).run(on_grid, CONFIG, 2, 1, None)
    models[2].blocks[0].mlp.experts.up.data += 1
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.experts\.up on rank 2 differs"):
        expert_state(models)


def test_what_has_diverged_is_still_a_copy():
    models = Cluster(4).run(on_grid, CONFIG, 2, 1, None)
    for model in models:
        model.blocks[0].mlp.experts.up.data[:] = torch.nan
    assert expert_state(models)["blocks.0.mlp.experts.up"].isnan().all()


def test_expert_choice_cannot_write():
    with pytest.raises(ValueError, match="expert choice a token's experts depend on the tokens after it"):
        Cluster(1).run(lambda group: generate(ExpertGPT(CONFIGS["expert choice"], group), PROMPT, 1))
