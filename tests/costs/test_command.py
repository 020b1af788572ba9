"""`python -m lib.costs`: the answer, and what it refuses."""

import json

import pytest
import transformers

from lib.costs.__main__ import main
from lib.costs.asked import read_bytes, read_count
from lib.costs.memory import peak
from lib.costs.shapes import MODELS
from lib.costs.training_plan import TrainingPlan


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
        ("--model gpt2 --devices 0", "devices=0 cannot be divided"),
        ("--model gpt2 --devices 8 --tensor 3", "devices=8 cannot be divided into replicas of tensor=3"),
        ("--model gpt2 --devices 5 --tensor 5", "tensor=5 devices cannot split heads=12"),
        ("--model gpt2 --devices 8 --batch 4", "take a multiple of 8"),
        ("--model gpt2 --sequence 4096", "the model has 1024 positions"),
        ("--model gpt2 --memory 80Gb", "'80Gb' is no size of a memory"),
        ("--model gpt2 --tokens many", "'many' is no number of tokens"),
        ("--model gpt2 --mfu 40", "40 % is 0.4"),
    ],
)
def test_nonsense_is_refused_by_name(asked, says, capsys):
    assert main(asked.split()) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1


def test_sizes_and_numbers():
    assert read_bytes("80GB") == 80e9
    assert read_bytes("1.5 GiB") == 1.5 * 2**30
    assert read_bytes("1000") == 1000
    assert read_count("15.6T") == 15.6e12
    assert read_count("2e12") == 2e12
