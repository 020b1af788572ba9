"""Weights of GPT-2 from files and back: identical bits, and clear words for what does not fit."""

import json

import pytest
import torch
from parallel.small_gpt import CONFIG, COUNTS, build, dense_weights
from safetensors.torch import load_file, save_file

from lib import dense_state
from lib.devices import Cluster
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.weights import (
    from_gpt2,
    gpt2_config,
    read_gpt2,
    to_gpt2,
    write_gpt2,
)

STATE = dense_weights(dtype=torch.float32)
SETTINGS = {"n_layer": 2, "n_embd": 24, "n_head": 12, "vocab_size": 50, "n_positions": 16} | dict.fromkeys(
    ["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0
)


def same(some, others):
    assert some.keys() == others.keys()
    return all(torch.equal(some[name], others[name]) for name in some)


def as_downloaded(tmp_path):
    """A file as on the hub: no prefix, no head, and the causal masks of older versions."""
    weights = {
        name.removeprefix("transformer."): x.contiguous()
        for name, x in to_gpt2(STATE, CONFIG).items()
        if name != "lm_head.weight"
    }
    for i in range(2):
        weights[f"h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
        weights[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("size", COUNTS)
def test_a_downloaded_file_cut_merged_and_written_back_has_the_same_bits(tmp_path, size):
    path = as_downloaded(tmp_path)
    config, state = read_gpt2(str(path))
    assert config == CONFIG
    assert same(state, STATE)
    merged = dense_state(Cluster(size).run(build, state))
    assert same(merged, STATE)
    again = tmp_path / "again" / "model.safetensors"
    again.parent.mkdir()
    write_gpt2(again, config, merged)
    before, after = load_file(path), load_file(again)
    assert same({f"transformer.{name}": x for name, x in before.items() if ".attn.bias" not in name
                 and "masked" not in name}, after)  # fmt: skip
    assert read_gpt2(again)[0] == config
    assert same(read_gpt2(again)[1], STATE)


def test_matrices_of_layers_are_transposed_and_the_rest_is_not():
    theirs = to_gpt2(STATE, CONFIG)
    assert theirs["transformer.h.1.attn.c_attn.weight"].shape == (24, 72)
    assert torch.equal(theirs["transformer.h.1.mlp.c_proj.weight"], STATE["blocks.1.mlp.down.weight"].T)
    assert torch.equal(theirs["transformer.wte.weight"], STATE["embedding.weight"])
    assert theirs["lm_head.weight"] is STATE["embedding.weight"]
    assert len(theirs) == len(STATE) + 1


def test_nothing_is_copied_before_it_is_cut():
    theirs = to_gpt2(STATE, CONFIG)
    ours = from_gpt2(theirs, CONFIG)
    assert all(ours[name].data_ptr() == STATE[name].data_ptr() for name in STATE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("transformer.h.1.ln_2.bias"), "from_gpt2: missing: h.1.ln_2.bias"),
        (lambda w: w.update({"score.weight": w["lm_head.weight"]}), "from_gpt2: unknown: score.weight"),
        (
            lambda w: w.update({"transformer.h.2.ln_1.bias": w.pop("transformer.h.1.ln_1.bias")}),
            "from_gpt2: missing: h.1.ln_1.bias; unknown: h.2.ln_1.bias",
        ),
        (
            lambda w: w.update({"transformer.h.0.mlp.c_fc.weight": w["transformer.h.0.mlp.c_fc.weight"].T}),
            "from_gpt2: h.0.mlp.c_fc.weight has shape (96, 24), that of nn.Linear, as nanoGPT keeps it; a GPT-2 has "
            "(24, 96), the transpose. Transpose the four matrices of each layer",
        ),
        (
            lambda w: w.update({"transformer.wpe.weight": torch.zeros(8, 24)}),
            "from_gpt2: wpe.weight has shape (8, 24); the config says (16, 24)",
        ),
        (
            lambda w: w.update({"lm_head.weight": w["lm_head.weight"] + 1}),
            "from_gpt2: lm_head.weight differs from wte.weight; our GPT has one weight for both",
        ),
    ],
)
def test_refused_weights(change, message):
    weights = to_gpt2(STATE, CONFIG)
    change(weights)
    with pytest.raises(ValueError) as refused:
        from_gpt2(weights, CONFIG)
    assert str(refused.value) == message


def test_a_file_of_another_size_is_refused(tmp_path):
    path = as_downloaded(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**SETTINGS, "n_layer": 1}))
    with pytest.raises(ValueError, match=r"from_gpt2: unknown: h.1.attn.bias, h.1.attn.c_attn.bias, "):
        read_gpt2(path)


@pytest.mark.parametrize("gone", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_there(tmp_path, gone):
    path = as_downloaded(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(FileNotFoundError) as refused:
        read_gpt2(path)
    assert str(refused.value).startswith(f"{tmp_path / gone} is not there")


def test_settings_left_out_are_those_of_gpt2_small():
    assert gpt2_config({}) == GPTConfig(12, 768, 12, 50257, 1024, dropout=0.1, approximate="tanh")
    assert gpt2_config({"n_inner": 3072}) == gpt2_config({})
    assert gpt2_config({**SETTINGS, "n_inner": 96}) == CONFIG


@pytest.mark.parametrize(
    ("activation", "approximate"), [("gelu", "none"), ("gelu_new", "tanh"), ("gelu_pytorch_tanh", "tanh")]
)
def test_both_kinds_of_gelu(activation, approximate):
    assert gpt2_config({"activation_function": activation}).approximate == approximate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_inner": 3071}, "gpt2_config: n_inner=3071 is not supported; our GPT has None built in"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06 is not supported; our GPT has 1e-05 built in"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False is not supported; our GPT has True built in"),
        ({"scale_attn_by_inverse_layer_idx": True}, "idx=True is not supported; our GPT has False built in"),
        ({"add_cross_attention": True}, "add_cross_attention=True is not supported; our GPT has False built in"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not supported; our GPT has True built in"),
        ({"activation_function": "relu"}, "activation_function='relu' is not one of gelu, gelu_new, gelu_pytorch_tanh"),
        ({"attn_pdrop": 0.0}, "our GPT has one dropout, not [0.0, 0.1]: give the three the same value"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(ValueError) as refused:
        gpt2_config(settings)
    assert str(refused.value).endswith(message)


def test_weights_that_cannot_be_written_are_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match=r"nowhere/model\.safetensors: .*No such file"):
        write_gpt2(tmp_path / "nowhere" / "model.safetensors", CONFIG, dense_weights())
