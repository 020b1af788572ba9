"""FLOPs by formula against PyTorch's own counter, and against published formulas."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from lib.costs.compute import forward_flops, layer_work, six_n_d, step_flops, turning_batch
from lib.costs.shapes import MODELS, ModelShape
from lib.devices.hardware import PRESETS

SMALL = {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
SMALL |= {"intermediate_size": 80, "vocab_size": 101, "attn_implementation": "eager"}
CONFIGS = [
    transformers.GPT2Config(
        n_layer=3, n_embd=48, n_head=6, vocab_size=101, n_positions=37, attn_implementation="eager"
    ),
    transformers.LlamaConfig(**SMALL),
    transformers.Qwen3Config(**SMALL, head_dim=16),
]


def counted(config, batch, sequence):
    """Forward, and forward and backward, by PyTorch's counter, of the model of `transformers`."""
    model = transformers.AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as forward:
        logits = model(torch.ones(batch, sequence, dtype=torch.long), use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_forward_and_step_equal_what_pytorch_counts(config):
    batch, sequence = 2, 24
    shape = ModelShape.from_config(config.to_dict())
    ours = sum(forward_flops(shape, batch, sequence).values()), step_flops(shape, batch, sequence)
    assert ours == counted(config, batch, sequence)


def test_formulas_of_the_papers():
    for name in ("gpt2", "gpt3-175b", "gpt-1t"):
        shape, b, s = MODELS[name], 3, 2048
        layers, h, vocabulary = shape.layers, shape.hidden, shape.vocabulary
        plain = 72 * b * s * layers * h**2 * (1 + s / (6 * h) + vocabulary / (12 * layers * h))
        anew = 96 * b * s * layers * h**2 * (1 + s / (6 * h) + vocabulary / (16 * layers * h))
        assert step_flops(shape, b, s) == pytest.approx(plain, rel=1e-12)
        assert step_flops(shape, b, s, "full") == pytest.approx(anew, rel=1e-12)


def test_recomputation_adds_what_it_computes_anew():
    shape = MODELS["llama-3-8b"]
    parts = forward_flops(shape, 1, 8192)
    assert step_flops(shape, 1, 8192, "selective") - step_flops(shape, 1, 8192) == parts["scores"]
    assert step_flops(shape, 1, 8192, "full") - step_flops(shape, 1, 8192) == sum(parts.values()) - parts["head"]
    with pytest.raises(ValueError, match="must be None, 'selective' or 'full'"):
        step_flops(shape, 1, 8192, "some")


def test_the_rule_of_thumb_leaves_out_the_scores():
    shape, sequence = MODELS["llama-3-8b"], 4096
    exact = step_flops(shape, 1, sequence) / sequence
    lookup = shape.vocabulary * shape.hidden  # counted by the rule, and no product
    scores = 3 * forward_flops(shape, 1, sequence)["scores"] / sequence
    norms = shape.parameters_by_part()["norms"]
    assert exact == six_n_d(shape.parameters - lookup - norms, 1) + scores
    assert six_n_d(1e9, 1e9, recompute=True) == 8e18


def test_a_causal_mask_keeps_half_of_the_scores():
    shape = MODELS["gpt2"]
    whole, half = forward_flops(shape, 1, 1024), forward_flops(shape, 1, 1024, causal_half=True)
    assert half.pop("scores") * 2 == whole.pop("scores")
    assert half == whole


def test_a_layer_s_work_adds_up_to_its_flops_and_weights():
    shape, batch, sequence = MODELS["mixtral-8x7b"], 2, 64
    products = ("queries, keys, values", "attention", "output projection", "MLP in", "MLP out")
    work = {part.name: part for part in layer_work(shape, batch, sequence)}
    forward = forward_flops(shape, batch, sequence)
    router = 2 * batch * sequence * shape.hidden * shape.experts
    expected = (sum(forward.values()) - forward["head"]) / shape.layers - router
    assert sum(work[name].flops for name in products) == expected
    # One token: what moves is the weights, to within the token itself.
    one = {part.name: part.moved for part in layer_work(shape, 1, 1)}
    assert one["MLP out"] == pytest.approx(2 * 8 * shape.hidden * shape.inner, rel=1e-3)


@pytest.mark.parametrize(("name", "expected"), [("H100", 295), ("H100 measured", 0.59 * 295)])
def test_decoding_waits_for_memory_below_the_turning_batch(name, expected):
    """Of products that reach a part of the peak, fewer hide the way of the weights: the batch turns earlier."""
    shape, hardware = MODELS["llama-3-70b"], PRESETS[name]
    speed, turn = hardware.flops * hardware.efficiency, turning_batch(hardware)
    assert turn == pytest.approx(expected, rel=0.01)
    for batch, bound in ((int(turn / 1.3), "memory"), (int(turn * 1.3), "compute")):
        down = {part.name: part for part in layer_work(shape, batch, 1, 1000)}["MLP out"]
        assert down.bound(hardware) == bound
        slower = down.moved / hardware.memory_bandwidth if bound == "memory" else down.flops / speed
        assert down.seconds(hardware) == slower
    attention = {part.name: part for part in layer_work(shape, 4096, 1, 10_000)}["attention"]
    assert attention.bound(hardware) == "memory"  # at any batch: each text has a cache of its own
