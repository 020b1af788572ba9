"""Sizes: exact counts of published models, settings from config.json and back, and what is refused by name."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from lib.parallel.llama.config import LLAMAS, LlamaConfig
from lib.parallel.llama.rotary import LinearScaling, Llama3Scaling
from lib.parallel.llama.settings import llama_config, to_settings

SMALL = {"layers": 1, "hidden": 48, "heads": 6, "kv_heads": 2, "inner": 80, "vocabulary": 101}
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_published_models_have_the_published_count(name, count):
    assert LlamaConfig.preset(name).parameters == count


@pytest.mark.parametrize("name", LLAMAS)
def test_settings_and_back_and_the_count_of_their_model(name, tmp_path):
    config = LLAMAS[name]
    (tmp_path / "config.json").write_text(json.dumps(to_settings(config)))
    assert llama_config(tmp_path) == llama_config(tmp_path / "model.safetensors") == config
    assert llama_config(AutoConfig.from_pretrained(tmp_path).to_dict()) == config  # as version 5 writes it
    small = replace(config, layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**to_settings(small)))
    assert sum(p.numel() for p in model.parameters()) == small.parameters


def test_scaling_in_old_words():
    settings = to_settings(LlamaConfig(**SMALL, scaling=LinearScaling(2.0)))
    settings["rope_scaling"] = {"type": "linear", "factor": 2.0}
    assert llama_config(settings).scaling == LinearScaling(2.0)


@pytest.mark.parametrize(
    ("kind", "settings", "positions"),
    [
        (transformers.MistralConfig, {"sliding_window": 100}, 100),
        (transformers.MistralConfig, {"sliding_window": None}, 500),
        (transformers.Qwen2Config, {"sliding_window": 100}, 500),
        (
            transformers.Qwen2Config,
            {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1, "num_hidden_layers": 2},
            100,
        ),
    ],
)
def test_a_text_ends_where_the_window_would_begin_to_slide(kind, settings, positions):
    assert llama_config(kind(max_position_embeddings=500, **settings).to_dict()).positions == positions


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"model_type": "gemma"}, "model_type='gemma' is not one of llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; our Llama has 'silu'"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn' is not one of default, linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "must say low_freq_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 is not supported"),
        ({"vocab_size": None}, "vocabulary=None must be an integer of at least 1"),
        ({"head_dim": 7}, "head_size=7 must be even"),
        ({"num_key_value_heads": 4}, "6 heads cannot share 4 heads of keys and values"),
    ],
)
def test_what_is_not_supported_is_named(more, says):
    settings = {**to_settings(LlamaConfig(**SMALL)), **more}
    with pytest.raises(ValueError, match=".") as refused:
        llama_config(settings)
    assert says in str(refused.value)


def test_a_missing_setting_is_named(tmp_path):
    settings = to_settings(LlamaConfig(**SMALL))
    del settings["hidden_size"], settings["vocab_size"]
    with pytest.raises(ValueError, match="a llama must say hidden_size, vocab_size, and these do not"):
        llama_config(settings)
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there"):
        llama_config(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"heads": 5}, "a hidden size of 48 cannot be divided into 5 heads"),
        ({"heads": 0}, "heads=0 must be an integer of at least 1"),
        ({"inner": 1.5}, "inner=1.5 must be an integer"),
        ({"kv_heads": 4}, "6 heads cannot share 4 heads of keys and values"),
        ({"head_size": 5}, "head_size=5 must be even"),
    ],
)
def test_sizes_that_cannot_be(sizes, says):
    with pytest.raises(ValueError, match=".") as refused:
        LlamaConfig(**{**SMALL, **sizes})
    assert says in str(refused.value)


def test_names_and_what_has_no_name():
    with pytest.raises(ValueError, match="there is no model 'llama-9'; the models are llama-2-7b, "):
        LlamaConfig.preset("llama-9")
    with pytest.raises(ValueError, match="no published kind has both"):
        to_settings(LlamaConfig(**SMALL, qkv_bias=True, qk_norm=True))
    llama_3 = LlamaConfig.preset("llama-3-405b")
    assert llama_3.scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)
