"""Costs of experts: Mixtral and DeepSeek-V3 counted exactly on meta, bytes, intensity, drops."""

import pytest
import torch

from lib import measure
from lib.costs.experts import (
    DEEPSEEK_V3,
    MIXTRAL_8X7B,
    ExpertShape,
    least_inner,
    rows_to_keep_busy,
)
from lib.devices import Hardware
from lib.parallel.experts.layer import MixtureOfExperts
from lib.parallel.experts.router import RoutingRule
from lib.parallel.sharding.placement import Shard

H100 = Hardware.preset("H100")


@pytest.mark.parametrize(
    ("ours", "name", "billions", "active"),
    [
        (MIXTRAL_8X7B, "Mixtral", 46.7, 12.9),  # as published
        (DEEPSEEK_V3, "DeepseekV3", 671.0, 37.6),
    ],
)
def test_published_models_counted_on_meta(ours, name, billions, active):
    import transformers  # here: every process of a test run would wait for it, and one needs it

    with torch.device("meta"):
        theirs = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")())
    assert ours.parameters == sum(p.numel() for p in theirs.parameters())
    assert round(ours.parameters / 1e9, 1) == billions
    assert round(ours.active / 1e9, 1) == active


@pytest.mark.parametrize("model", [MIXTRAL_8X7B, DEEPSEEK_V3])
def test_a_layer_of_that_size_on_meta(model):
    """Held, computed and sent by one device of 8: counted by our own layer, nothing by formula."""
    shape, tokens = model.expert, 4096
    rule = RoutingRule(shape.experts, shape.k)
    found = measure(
        lambda g: MixtureOfExperts(shape.hidden, shape.inner, rule, g, gated=True, shared=shape.shared),
        (tokens, shape.hidden),
        devices=8,
        cut=Shard(0),
    )
    all_of_them = shape.parameters - shape.experts * shape.expert_parameters * 7 // 8
    assert found.parameters == all_of_them
    assert found.forward.flops == shape.flops(tokens) // 8
    assert found.forward.sent["all_to_all"].bytes_sent == 2 * shape.all_to_all_bytes(tokens // 8, 8)
    assert found.backward.sent["all_to_all"].bytes_sent == 2 * shape.all_to_all_bytes(tokens // 8, 8)


def test_experts_that_few_tokens_read():
    shape = ExpertShape(8, 8, 8, 2)
    assert shape.experts_read(1) == pytest.approx(2)
    assert shape.experts_read(1000) == pytest.approx(8)
    drawn = torch.rand(4000, 5, 8, generator=torch.Generator().manual_seed(0)).topk(2, -1).indices  # 5 tokens, often
    seen = torch.zeros(4000, 8).scatter(1, drawn.flatten(1), 1.0).sum(1).mean()
    assert shape.experts_read(5) == pytest.approx(float(seen), rel=0.01)


def test_the_inner_size_at_which_links_keep_up():
    """The formula against the seconds of arithmetic and of sending."""
    inner = least_inner(H100, H100.inside, 8)
    shape = ExpertShape(4096, round(inner), 8, 2)
    computing = 2 * shape.k * shape.expert_parameters * 1000 / H100.flops
    sending = 2 * shape.all_to_all_bytes(1000, 8) / H100.inside.bandwidth
    assert computing == pytest.approx(sending, rel=1e-3)
    assert least_inner(H100, H100.between, 8) == pytest.approx(9 * inner)


def test_rows_that_keep_the_arithmetic_busy():
    rows, weights = rows_to_keep_busy(H100), 4096 * 14336
    assert 2 * rows * weights / H100.flops == pytest.approx(2 * weights / H100.memory_bandwidth)
