"""`python -m lib.costs`: the answer, and what it refuses."""

import json

import pytest
import transformers

from lib.costs.__main__ import main
from lib.costs.asked import read_bytes, read_count
from lib.costs.memory import peak
from lib.costs.shapes import MODELS
from lib.costs.training_plan import TrainingPlan

LLAMA = (
    b'{"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 9, '
    b'"num_attention_heads": %b}'
)


def test_the_table_is_that_of_the_formula(capsys):
    asked = "--model llama-3-70b --devices 64 --tensor 8 --zero 1 --memory 80GB --sequence 8192 --tokens 1T"
    assert main(asked.split()) == 0
    said = capsys.readouterr().out
    plan = TrainingPlan(8192, tensor=8, data=8, zero=1)
    most = peak(MODELS["llama-3-70b"], plan)
    assert "llama-3-70b: 70,553,706,496 parameters" in said
    assert f"at {most.name}:" in said
    for use in ("parameters", "optimizer", "activations", "logits"):
        assert f"{getattr(most, use) / 1e9:,.2f} GB" in said
    assert f"{(most.total - 80e9) / 1e9:,.2f} GB too much" in said
    assert "8 texts of 8192 tokens" in said
    assert "days" in said


def test_one_is_no_plural(capsys):
    assert main(["--model", "gpt2"]) == 0
    said = capsys.readouterr().out
    assert "1 device: data 1" in said
    assert "1 text of 1024 tokens per step" in said


def test_the_first_stage_of_a_pipeline_may_be_the_fullest(capsys):
    assert main("--model gpt3-175b --devices 64 --tensor 8 --pipeline 8 --sequence-parallel".split()) == 0
    assert "(stage 0 of 8)" in capsys.readouterr().out


def test_a_config_json_is_a_model_too(tmp_path, capsys):
    config = transformers.LlamaConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=96)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    assert main(["--model", str(tmp_path / "config.json"), "--devices", "2"]) == 0
    assert "fits:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("--model nope", "there is no model 'nope'"),
        ("--model /no/config.json", "is not there"),
        ("--model gpt2 --devices 0", "the options: devices=0 must be an integer of at least 1"),
        ("--model gpt2 --batch 0", "the options: batch=0 must be an integer of at least 1"),
        ("--model gpt2 --micro-batch 0", "the options: micro_batch=0 must be"),
        ("--model gpt2 --memory=", "'' is no number of bytes"),
        ("--model gpt2 --memory 1.2.3GB", "'1.2.3GB' is no number of bytes"),
        ("--model gpt2 --memory 1" + 400 * "0", "is no number of bytes"),
        ("--model gpt2 --tokens=", "'' is no number of tokens"),
        ("--model gpt2 --tokens .", "'.' is no number of tokens"),
        ("--model gpt2 --tokens 1e999", "'1e999' is no number of tokens"),
        ("--model gpt2 --tokens 1B --watts inf", "watts=inf must be at least 0, and finite"),
        ("--model gpt2 --dollars-per-hour 3", "are for a whole training: say how long with --tokens"),
        ("--model gpt2 --devices 8 --tensor 3", "devices=8 cannot be divided into replicas of tensor=3"),
        ("--model gpt2 --devices 5 --tensor 5", "tensor=5 devices cannot split heads=12"),
        ("--model gpt2 --devices 8 --batch 4", "take a multiple of 8"),
        ("--model gpt2 --sequence 4096", "the model has 1024 positions"),
        ("--model gpt2 --memory 80Gb", "'80Gb' is no number of bytes"),
        ("--model gpt2 --memory 2iB", "'2iB' is no number of bytes"),
        ("--model gpt2 --memory 80", "'80' is no number of bytes above 0: write 80GB"),
        ("--model gpt2 --tokens many", "'many' is no number of tokens"),
        ("--model gpt2 --mfu 40", "40 % is 0.4"),
    ],
)
def test_nonsense_is_refused_by_name(asked, says, capsys):
    assert main(asked.split()) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (b"root:x:0", "config.json is not JSON"),
        (b"\xff\xfe{}", "config.json is not JSON"),
        (b"[1, 2]", "config.json holds no settings, but a list"),
        (b'{"model_type": ["llama"]}', "model_type=['llama'] is not one of"),
        (LLAMA % b"null", "cannot be divided into heads=None"),
        (LLAMA % b'"4"', "cannot be divided into heads='4'"),
        (b'{"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 9, "n_positions": null}',
         "learned_positions=None must be an integer of at least 1"),
    ],
)  # fmt: skip
def test_a_config_of_nonsense_is_named(settings, says, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes(settings)
    assert main(["--model", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


def test_the_answer_fits_a_terminal(capsys):
    assert main("--model mixtral-8x7b --devices 1024 --tensor 8 --pipeline 16 --tokens 15T".split()) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 80


def test_sizes_and_numbers():
    assert read_bytes("80GB") == 80e9
    assert read_bytes("1.5 GiB") == 1.5 * 2**30
    assert read_bytes("1000 B") == read_bytes("1kB") == 1000
    assert read_count("15.6T") == 15.6e12
    assert read_count("2e12") == 2e12


def test_an_interruption_is_no_traceback(monkeypatch):
    def interrupted(model):
        raise KeyboardInterrupt

    monkeypatch.setattr("lib.costs.__main__.shape_of", interrupted)
    assert main(["--model", "gpt2"]) == 130
