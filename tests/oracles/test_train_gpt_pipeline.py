"""`train_gpt --pipeline-parallel`: the losses and norms of one device, simulated and under torchrun."""

import re

import pytest
from oracles.commands import losses, simulated, torchrun

from lib.examples import train_gpt

SAME = ["--steps", 4, "--layers", 3, "--hidden", 16, "--batch", 8, "--length", 16, "--seed", 3, "--dtype", "float64"]
SAME += ["--accumulate", 4, "--clip", 0.5]


def norms(said):
    return re.findall(r"norm (\d+\.\d+)", said)


@pytest.fixture(scope="module")
def one_device():
    return simulated(train_gpt.main, "--size", 1, *SAME)


@pytest.mark.parametrize(
    ("size", "options"),
    [(2, []), (3, []), (8, ["--data-parallel", 2, "--sequence-parallel"])],
    ids=["2 stages", "3 stages", "data x pipeline x tensor"],
)
def test_losses_and_clipped_norms_are_those_of_one_device(one_device, size, options):
    stages = 3 if size == 3 else 2
    many = simulated(train_gpt.main, "--size", size, "--pipeline-parallel", stages, *options, *SAME)
    assert list(losses(many).values()) == pytest.approx(list(losses(one_device).values()), abs=2e-8)  # as printed
    assert norms(many) == norms(one_device)
    assert len(norms(many)) == 4


def test_under_torchrun_the_same_is_said():
    options = ["--pipeline-parallel", 2, *SAME]
    real = torchrun(stages=(2, "-m", "lib.examples.train_gpt", *options))["stages"]
    ours = simulated(train_gpt.main, "--size", 2, *options)
    assert losses(ours) == losses(real)
    assert norms(ours) == norms(real)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", 4, "--pipeline-parallel", 3], "cannot be divided into 3 equal stages"),
        (["--size", 2, "--pipeline-parallel", 2, "--zero", 1], "zero=1 with pipeline_parallel=2"),
        (["--size", 2, "--pipeline-parallel", 2, "--save", "x.safetensors"], "--save: with --pipeline-parallel"),
        (["--size", 2, "--pipeline-parallel", 2, "--validation", 0.1], "--validation: with --pipeline-parallel"),
        (["--size", 4, "--pipeline-parallel", 4, "--layers", 3], "3 layers cannot be cut into 4 stages"),
    ],
)
def test_what_is_refused(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=re.escape(words)):
        train_gpt.main([*map(str, options), "--steps", "1"])


def test_a_checkpoint_goes_on_where_it_stopped(tmp_path):
    options = ["--size", 2, "--pipeline-parallel", 2, *SAME, "--checkpoint", tmp_path, "--every", 2]
    whole = simulated(train_gpt.main, *options)
    (tmp_path / "step-000004" / "manifest.json").unlink()
    resumed = simulated(train_gpt.main, *options, "--resume")
    later = {step: loss for step, loss in losses(whole).items() if step >= 2}
    assert losses(resumed) == later
