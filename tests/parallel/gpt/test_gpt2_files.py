"""Weights as people have them on disk: whatever the form, the same bits; else the file and its fault are named."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from parallel.gpt.test_gpt2_weights import SETTINGS, STATE, same
from parallel.small_gpt import CONFIG
from safetensors.torch import save_file

from lib.parallel.gpt.files import read_files, without_wrappers
from lib.parallel.gpt.weights import gpt2_config, read_gpt2, to_gpt2

WEIGHTS = {name: x.contiguous() for name, x in to_gpt2(STATE, CONFIG).items() if name != "lm_head.weight"}
FIRST = dict(list(WEIGHTS.items())[:9])
SECOND = {name: x for name, x in WEIGHTS.items() if name not in FIRST}


def write(folder, files, settings=SETTINGS):
    (folder / "config.json").write_text(json.dumps(settings))
    for name, content in files.items():
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(content))
        elif name.endswith(".safetensors"):
            save_file(content, folder / name)
        else:
            torch.save(content, folder / name)


def sharded(kind, stem):
    names = [f"{stem}-0000{i}-of-00002.{kind}" for i in (1, 2)]
    where = dict.fromkeys(FIRST, names[0]) | dict.fromkeys(SECOND, names[1])
    return {names[0]: FIRST, names[1]: SECOND, f"{stem}.{kind}.index.json": {"metadata": {}, "weight_map": where}}


def prefixed(prefix):
    return {"model.safetensors": {prefix + name: x for name, x in WEIGHTS.items()}}


PARTS, BINS = sharded("safetensors", "model"), sharded("bin", "pytorch_model")
WELL = {
    "a file": ({"model.safetensors": WEIGHTS}, "model.safetensors"),
    "another name": ({"gpt2-mine.safetensors": WEIGHTS}, "gpt2-mine.safetensors"),
    "a folder": ({"model.safetensors": WEIGHTS}, ""),
    "a folder of parts": (PARTS, ""),
    "a folder of .bin": ({"pytorch_model.bin": WEIGHTS}, ""),
    "a folder of .bin parts": (BINS, ""),
    "an index": (PARTS, "model.safetensors.index.json"),
    "the second part": (PARTS, "model-00002-of-00002.safetensors"),
    "the first .bin part": (BINS, "pytorch_model-00001-of-00002.bin"),
    "a part of one": ({"model-00001-of-00001.safetensors": WEIGHTS}, "model-00001-of-00001.safetensors"),
    ".bin": ({"pytorch_model.bin": WEIGHTS}, "pytorch_model.bin"),
    "a checkpoint with more in it": ({"ckpt.pt": {"model": WEIGHTS, "iter_num": 5, "best": 1.5}}, "ckpt.pt"),
    "a state_dict in a .pth": ({"a.pth": {"epoch": 3, "state_dict": WEIGHTS}}, "a.pth"),
    "module.": (prefixed("module."), ""),
    "_orig_mod.": (prefixed("_orig_mod."), ""),
    "both": (prefixed("_orig_mod.module."), ""),
    "compiled blocks": (
        {"model.safetensors": {name.replace(".attn.", ".attn._orig_mod."): x for name, x in WEIGHTS.items()}}, "",
    ),
    "wrapped by FSDP and recomputation": (
        {"model.safetensors": {
            name.replace(".mlp.", "._fsdp_wrapped_module._checkpoint_wrapped_module.mlp."): x
            for name, x in WEIGHTS.items()
        }}, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", WELL)
def test_every_form_gives_the_same_bits(form, tmp_path):
    files, path = WELL[form]
    write(tmp_path, files)
    for source in (tmp_path / path, str(tmp_path / path)):
        config, state = read_gpt2(source)
        assert config == CONFIG
        assert same(state, STATE)


def without(files, gone):
    return {name: content for name, content in files.items() if name != gone}


INDEX = "model.safetensors.index.json"
PART = "model-00002-of-00002.safetensors"
BAD = {
    "an empty folder": ({}, "", "is a folder without weights: none of model.safetensors, pytorch_model.bin, "),
    "no such file": ({}, "x.safetensors", "x.safetensors is not there"),
    "a part without its index": (
        without(PARTS, INDEX), PART, f"holds one of 2 parts of the weights, and {INDEX}, which says",
    ),
    "an index without a part": (without(PARTS, PART), "", f"{PART} is not there, but {INDEX} says that it holds"),
    "a part that lacks something": (
        {**PARTS, PART: dict(list(SECOND.items())[1:])}, "", f"{INDEX} says that there is .*, but {PART} does not hold",
    ),
    "an index without a map": ({INDEX: {"metadata": {}}}, "", "is no index of weights: it has no weight_map"),
    "an index that is a list": ({INDEX: [1]}, "", "holds no settings, but a list"),
    "an optimizer's state": ({"a.bin": {"state": {0: {"step": 3}}}}, "a.bin", "holds no state dict"),
    "a whole module": ({"a.pt": torch.nn.Linear(2, 2)}, "a.pt", "is no safe .bin file, or was cut off"),
    "a list": ({"a.pt": [1, 2]}, "a.pt", "holds no state dict: save model.state_dict"),
    "quantized": (
        {"model.safetensors": {n: x.to(torch.int8) if x.ndim == 2 else x for n, x in WEIGHTS.items()}}, "",
        "is torch.int8: quantized weights are not read",
    ),
    "as nanoGPT keeps it": (
        {"model.safetensors": {n: x.T.contiguous() if "h." in n and x.ndim == 2 else x for n, x in WEIGHTS.items()}},
        "",
        r"h.0.attn.c_attn.weight has shape \(72, 24\), that of nn.Linear, as nanoGPT keeps it; a GPT-2 has \(24, 72\)",
    ),
    "twice the same": (
        {"model.safetensors": {**WEIGHTS, "module.transformer.wte.weight": torch.ones(1)}}, "",
        "two weights are called transformer.wte.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", BAD)
def test_the_file_and_its_fault_are_named(form, tmp_path):
    files, path, message = BAD[form]
    write(tmp_path, files)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        read_gpt2(tmp_path / path)


class Malicious:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_bin_that_would_run_something_is_refused_and_does_not_run(tmp_path):
    write(tmp_path, {"pytorch_model.bin": {"x": Malicious(tmp_path / "was run")}})
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "was run"), protocol=2))
    for name in ("pytorch_model.bin", "plain.bin"):
        with pytest.raises(ValueError, match=f"{name} is no safe .bin file"):
            read_gpt2(tmp_path / name)
    assert not (tmp_path / "was run").exists()


def test_an_index_does_not_lead_out_of_its_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(WEIGHTS, tmp_path / "secret.safetensors")
    write(inside, {INDEX: {"weight_map": dict.fromkeys(WEIGHTS, "../secret.safetensors")}})
    with pytest.raises(FileNotFoundError, match=r"inside/secret.safetensors is not there"):
        read_gpt2(inside)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "only a pointer to the weights, left by git"),
        (b"", "is no .safetensors file, or was cut off"),
        (b"PK\x03\x04", "is no .safetensors file, or was cut off"),
    ],
)
def test_files_that_are_broken(tmp_path, content, message):
    write(tmp_path, {})
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_files(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_download_that_was_cut_off(tmp_path, name):
    write(tmp_path, {name: WEIGHTS})
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{name} is no .*, or was cut off: "):
        read_files(tmp_path)


def test_settings_by_their_other_names():
    names = {"n_layer": "num_hidden_layers", "n_embd": "hidden_size", "n_head": "num_attention_heads"}
    other = {names.get(name, name): value for name, value in SETTINGS.items() if name != "n_positions"}
    for name in ("n_ctx", "max_position_embeddings"):
        assert gpt2_config({**other, name: 16}) == gpt2_config(SETTINGS)
    assert gpt2_config({**SETTINGS, "n_ctx": 16, "hidden_size": 24}) == gpt2_config(SETTINGS)
    with pytest.raises(ValueError, match="n_embd=24 and hidden_size=32 mean the same thing"):
        gpt2_config({**SETTINGS, "hidden_size": 32})


def test_settings_of_another_model():
    with pytest.raises(ValueError, match="these are the settings of a 'llama', and our GPT is a 'gpt2'"):
        gpt2_config({**SETTINGS, "model_type": "llama"})


def test_names_that_have_no_wrapper_stay():
    weights = {"a.b": torch.ones(1), "modules.0.weight": torch.ones(2)}
    assert without_wrappers(weights) == weights
