"""Parameter counts: exact, against published numbers and against `transformers`' own models."""

import json

import pytest
import torch
import transformers

from lib.costs.shapes import MODELS, ModelShape

# Recomputed from the published configurations; GPT-2's own paper misprints its sizes.
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3-405b": 405_853_388_800,
}
SMALL = {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
SMALL |= {"intermediate_size": 80, "vocab_size": 101}
CONFIGS = [
    transformers.GPT2Config(n_layer=3, n_embd=48, n_head=6, vocab_size=101, n_positions=37),
    transformers.GPT2Config(n_layer=2, n_embd=48, n_head=6, vocab_size=101, n_positions=37, n_inner=50),
    transformers.LlamaConfig(**SMALL),
    transformers.LlamaConfig(**SMALL, tie_word_embeddings=True, head_dim=20),
    transformers.MistralConfig(**SMALL),
    transformers.MixtralConfig(**SMALL, num_local_experts=5, num_experts_per_tok=2),
    transformers.Qwen2Config(**SMALL),
    transformers.Qwen3Config(**SMALL, head_dim=16),
]


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_published_models_have_the_published_count(name, count):
    assert ModelShape.preset(name).parameters == count


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_a_config_of_transformers_gives_the_count_of_its_model(config, tmp_path):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    count = sum(p.numel() for p in model.parameters())
    assert ModelShape.from_config(config.to_dict()).parameters == count
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    assert ModelShape.from_config(tmp_path).parameters == count
    assert ModelShape.from_config(tmp_path / "config.json").parameters == count


def test_every_part_is_counted_once():
    for shape in MODELS.values():
        assert sum(shape.parameters_by_part().values()) == shape.parameters
        assert (shape.active_parameters < shape.parameters) == (shape.experts > 1)


def test_of_the_experts_only_the_active_ones_are_passed():
    mixtral = ModelShape.preset("mixtral-8x7b")
    matrix = mixtral.hidden * mixtral.inner
    assert mixtral.parameters - mixtral.active_parameters == 32 * 3 * matrix * (8 - 2)
    assert mixtral.active_parameters == pytest.approx(12.9e9, rel=0.01)  # as the paper says


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: ModelShape.preset("gpt5"), ValueError, "there is no model 'gpt5'; the models are gpt2,"),
        (lambda: ModelShape.gpt(0, 64, 4), ValueError, "layers=0 must be an integer of at least 1"),
        (lambda: ModelShape.gpt(2, 64, 5), ValueError, "hidden size of 64 cannot be divided into heads=5"),
        (lambda: ModelShape.gpt(2, 64, 0), ValueError, "heads=0"),
        (lambda: ModelShape.llama(2, 64, 8, 3, 100, 50), ValueError, "8 heads cannot share 3 heads of keys"),
        (lambda: ModelShape.llama(2, 60, 8, 4, 100, 50), ValueError, "hidden size of 60 cannot be divided"),
        (lambda: ModelShape.llama(2, 64, 8, 4, 100.0, 50), ValueError, "inner=100.0"),
        (lambda: ModelShape.llama(2, 64, 8, 4, 100, 50, experts=2, active_experts=3), ValueError, "3 of 2 experts"),
        (lambda: ModelShape.from_config({"model_type": "t5"}), ValueError, "model_type='t5' is not one of gpt2,"),
        (lambda: ModelShape.from_config({"model_type": "gpt2"}), ValueError, "must say 'n_embd'"),
        (lambda: ModelShape.from_config("/no/such/place"), FileNotFoundError, "is not there"),
        (lambda: ModelShape.from_config({"model_type": "llama", "mlp_bias": True, **SMALL}), ValueError, "mlp_bias"),
        (
            lambda: ModelShape.from_config({"model_type": "llama", "attention_bias": True, **SMALL}),
            ValueError,
            "attention_bias",
        ),
    ],
)
def test_what_cannot_be_is_named(make, error, says):
    with pytest.raises(error) as caught:
        make()
    assert says in str(caught.value)
