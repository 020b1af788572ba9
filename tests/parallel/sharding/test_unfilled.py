"""Layers that are made unfilled draw nothing, and a model that fills them has the numbers it had before."""

import pytest
import torch
from torch import nn

from lib import GPT, Cluster, GPTConfig
from lib.parallel.experts.model import ExpertGPT, ExpertGPTConfig
from lib.parallel.llama.config import LlamaConfig
from lib.parallel.llama.model import Llama
from lib.parallel.sharding.unfilled import Unfilled

MAKE = {
    "linear": lambda: nn.Linear(3, 4),
    "embedding": lambda: nn.Embedding(3, 4),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "by hand": lambda: [torch.empty(3).uniform_(-1, 1), torch.empty(3).normal_()],
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_nothing_is_drawn(make):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with Unfilled():
        make()
    assert torch.equal(torch.get_rng_state(), before)
    make()
    assert not torch.equal(torch.get_rng_state(), before)


def test_what_is_no_draw_is_done():
    with Unfilled():
        norm, twos = nn.LayerNorm(3), torch.full((2,), 2.0)
    assert norm.weight.tolist() == [1.0] * 3
    assert norm.bias.tolist() == [0.0] * 3
    assert twos.tolist() == [2.0, 2.0]


MODELS = {
    "GPT": (GPT, GPTConfig(2, 8, 2, 10, 4)),
    "Llama": (Llama, LlamaConfig(layers=2, hidden=8, heads=2, kv_heads=2, inner=12, vocabulary=10, positions=4)),
    "experts": (ExpertGPT, ExpertGPTConfig(2, 8, 2, vocabulary=10, positions=4, experts=2, inner=8)),
}


@pytest.mark.parametrize(("model", "config"), MODELS.values(), ids=MODELS)
def test_a_model_draws_its_matrices_one_after_the_other_and_nothing_else(model, config):
    def program(group):
        model(config, group)

    torch.manual_seed(0)
    Cluster(1).run(program)
    found = torch.get_rng_state()
    torch.manual_seed(0)
    for shape in config.shapes().values():
        if len(shape) > 1:
            torch.empty(shape).normal_()
    assert torch.equal(found, torch.get_rng_state())
