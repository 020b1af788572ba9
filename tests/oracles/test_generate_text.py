"""The text that several devices write together is that of one, and that of transformers. (Under torchrun, see
`test_train_gpt.py`.)"""

import json
import re
import runpy
import shutil
import sys

import pytest
import torch
from oracles.commands import simulated
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lib.examples import generate_text, train_gpt
from lib.examples.text import alice

DRAWN = ["--prompt", "the ", "--count", 30, "--temperature", 0.7, "--top-k", 9, "--seed", 4]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """As a reader trains them."""
    file = tmp_path_factory.mktemp("own") / "model.safetensors"
    simulated(train_gpt.main, "--size", 1, "--steps", 40, "--batch", 4, "--rate", 0.02, "--save", file)
    return file


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """As a hub keeps them: the weights of a GPT-2, its config.json and its tokenizer.json. Returns the model, too."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([alice().decode(alice().tokens[:20000])], vocab_size=300, show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=24, n_head=4, vocab_size=302, n_positions=64, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return folder / "model.safetensors", model


def write(weights, *options):
    said = simulated(generate_text.main, "--weights", weights, *options)
    assert said.endswith("\n")
    return said[:-1]


def ends(*options):
    """The message with which it ends."""
    with pytest.raises(SystemExit) as ended:
        simulated(generate_text.main, *options)
    assert ended.value.code.startswith("generate_text: ")
    return ended.value.code


def test_any_number_of_devices_writes_the_same(weights):
    one = write(weights, "--size", 1, *DRAWN)
    assert one.startswith("the ")
    assert len(one) == 34
    for size in 2, 4:
        assert write(weights, "--size", size, *DRAWN) == one


def test_four_devices_and_the_likeliest_characters_unless_said_otherwise(weights):
    greedy = write(weights)
    assert greedy.startswith("Alice ")
    assert len(greedy) == 56
    assert greedy == write(weights, "--size", 4, "--temperature", 0, "--seed", 9)
    assert greedy == write(weights, "--top-k", 1, "--temperature", 3.0, "--size", 1)


def test_the_command_as_a_reader_types_it(weights, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate_text", "--weights", str(weights), "--count", "3"])
    monkeypatch.delitem(sys.modules, generate_text.__name__)  # it runs under another name
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(generate_text.__name__, run_name="__main__")
    assert ended.value.code in (None, 0)
    assert capsys.readouterr().out == write(weights, "--count", 3) + "\n"


def test_what_is_drawn_depends_on_seed_temperature_and_top_k(weights):
    others = [["--seed", 5], ["--temperature", 2.0], ["--top-k", 2]]
    assert len({write(weights, "--size", 1, *DRAWN, *other) for other in ([], *others)}) == 4


def test_a_gpt2_from_a_hub_writes_what_transformers_writes(hub):
    file, theirs = hub
    tokenizer = Tokenizer.from_file(str(file.with_name("tokenizer.json")))
    prompt = "Alice was, very soon,"
    tokens = torch.tensor([tokenizer.encode(prompt).ids])
    assert tokens.numel() < len(prompt)
    expected = theirs.generate(tokens, max_new_tokens=20, do_sample=False, pad_token_id=0)[0].tolist()
    assert len(set(expected[tokens.numel() :])) > 3
    for size in 1, 4:
        assert write(file, "--prompt", prompt, "--count", 20, "--size", size) == tokenizer.decode(expected)


def test_a_llama_from_a_hub_writes_what_transformers_writes(hub, tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=24, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40,
        vocab_size=302, max_position_embeddings=64, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    file = shutil.copy(hub[0].with_name("tokenizer.json"), tmp_path)
    tokenizer = Tokenizer.from_file(str(file))
    prompt = "Alice was, very soon,"
    tokens = torch.tensor([tokenizer.encode(prompt).ids])
    expected = theirs.generate(tokens, max_new_tokens=20, do_sample=False, pad_token_id=0)[0].tolist()
    assert len(set(expected[tokens.numel() :])) > 3
    for size in 1, 4:
        assert write(tmp_path, "--prompt", prompt, "--count", 20, "--size", size) == tokenizer.decode(expected)
    min(tmp_path.glob("model-*.safetensors")).unlink()
    assert "is not there, but model.safetensors.index.json says that it holds a part" in ends("--weights", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", 3], "4 heads cannot be split over 3 devices: possible are 1, 2, 4"),
        (["--size", 0], "the number of devices must be an integer of at least 1"),
        (["--prompt", "Zoé"], r"\['é'\] are not among the 72 characters of this text"),
        (["--prompt", ""], r"the prompt of shape \(1, 0\) must be \(batch, S\) with S at least 1"),
        (["--prompt", "a" * 70], "after a prompt of 70; the model has 64 positions in all"),
        (["--count", 59], "count=59 tokens after a prompt of 6; the model has 64 positions in all"),
        (["--count", -1], "count=-1 tokens"),
        (["--temperature", "nan"], r"temperature=nan must be 0 \(the likeliest token\) or above, and finite"),
        (["--temperature", "inf"], "temperature=inf must be 0"),
        (["--temperature", -1], r"temperature=-1.0 must be 0 \(the likeliest token\) or above"),
        (["--temperature", 1, "--top-k", 0], "top_k=0 must be at least 1"),
    ],
)
def test_what_cannot_be_written(weights, options, message):
    assert re.search(message, ends("--weights", weights, *options))


def test_no_weights(tmp_path):
    assert "nothing.safetensors is not there" in ends("--weights", tmp_path / "nothing.safetensors")


def test_weights_without_a_config(tmp_path, weights):
    alone = shutil.copy(weights, tmp_path)
    assert "config.json is not there; it needs to stand beside model.safetensors, with the sizes" in ends(
        "--weights", alone
    )


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json"])
def test_files_that_hold_something_else(tmp_path, weights, broken):
    shutil.copytree(weights.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / broken).write_text("Down the Rabbit-Hole")
    said = ends("--weights", tmp_path / "model.safetensors")
    assert "model.safetensors, or the config.json beside it, does not hold a GPT-2 or a Llama: " in said


def test_no_tokenizer(tmp_path, hub):
    for name in "model.safetensors", "config.json":
        shutil.copy(hub[0].with_name(name), tmp_path)
    said = ends("--weights", tmp_path / "model.safetensors")
    assert "a vocabulary of 302 tokens needs a tokenizer, and " in said
    assert "tokenizer.json is not there: download it from where the weights are" in said


def test_the_tokenizer_of_another_model(tmp_path, weights, hub):
    shutil.copytree(weights.parent, tmp_path, dirs_exist_ok=True)
    shutil.copy(hub[0].with_name("tokenizer.json"), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == 72
    said = ends("--weights", tmp_path / "model.safetensors")
    assert "tokenizer.json has 300 tokens, but the model knows 72: it belongs to another model" in said
