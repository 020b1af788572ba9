"""The program that trains a GPT: every option, and what cannot be."""

import re

import pytest
import torch
from oracles.commands import SMALL, losses, one_thread, simulated

from lib import Cluster, dense_state
from lib.examples import train_gpt
from lib.examples.text import alice
from lib.examples.training import train
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT
from lib.parallel.gpt.weights import read_gpt2


def test_what_one_device_holds():
    said = simulated(train_gpt.main, "--size", 1, *SMALL, "--steps", 1, "--device", "meta")
    parameters = GPTConfig(1, 32, 4, alice().vocabulary, positions=32).parameters
    assert f"each device holds {parameters:,} parameters; " in said
    assert f", {16 * parameters:,} bytes\n" in said


def loss_at_the_start(group, config, batch, length, seed):
    torch.manual_seed(seed)
    tokens, targets = next(alice().batches(1, batch, length, seed))
    return GPT(config, group).double()(tokens, targets).item()


def test_every_option_arrives(tmp_path):
    """Five texts over two replicas: these count unequally, and so do their losses."""
    file = tmp_path / "new" / "folder" / "some.safetensors"
    numbers = {"steps": 7, "data-parallel": 2, "batch": 5, "length": 12, "rate": 0.02, "seed": 5}
    sizes = {"layers": 2, "hidden": 24, "heads": 2}
    options = [word for name, n in (numbers | sizes).items() for word in (f"--{name}", n)]
    more = ["--sequence-parallel", "--dtype", "float64", "--save", file]
    said = simulated(train_gpt.main, "--size", 4, *options, *more)
    config = GPTConfig(2, 24, 2, alice().vocabulary, positions=12, deviation=0.1)
    with one_thread():
        [(expected, model)] = Cluster(1).run(
            train, config, alice(), 7, batch=5, length=12, rate=0.02, seed=5, dtype=torch.float64
        )
        first = Cluster(1).run(loss_at_the_start, config, 5, 12, 5)[0]
    assert abs(expected[0] - first) < 1e-12
    assert list(losses(said)) == list(range(7))
    for found, loss in zip(losses(said).values(), expected, strict=True):
        assert abs(found - loss) < 1e-7
    assert " float64 on cpu, 2 replica(s)\n" in said
    assert re.search(r"^ +\d +reduce_scatter ", said, re.M)
    written, state = read_gpt2(file)
    assert (written.layers, written.hidden, written.heads, written.positions) == (2, 24, 2, 12)
    for name, x in model.named_parameters():
        torch.testing.assert_close(state[name], x.detach(), rtol=0, atol=1e-9)


def plain_loop(group, config, steps, batch, length):
    """What `train` shall do unless asked otherwise, for one device: no gradient outlives its step."""
    torch.manual_seed(0)
    model = GPT(config, group).double()
    weights, losses = list(model.parameters()), []
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps, cycle_momentum=False)
    for tokens, targets in alice().batches(steps, batch, length, seed=0):
        loss = model(tokens, targets)
        for p, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            p.grad = grad
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize(("size", "replicas"), [(1, 1), (4, 2)])
def test_it_trains_as_a_plain_loop_does(size, replicas):
    config, cluster = GPTConfig(1, 8, 2, alice().vocabulary, positions=8), Cluster(size)
    expected, dense = Cluster(1).run(plain_loop, config, 6, 16, 8)[0]
    results = cluster.run(train, config, alice(), 6, replicas, length=8, dtype=torch.float64)
    for found, _ in results:
        assert found == pytest.approx(expected, rel=0, abs=1e-12)
    whole = dense_state([model for _, model in results[: size // replicas]])
    for name, x in dense.named_parameters():  # AdamW divides by small numbers
        torch.testing.assert_close(whole[name], x.detach(), rtol=0, atol=1e-9, msg=name)
    assert cluster.meters.verbs() == ["all_reduce"]  # of sequence parallelism there would be others


def test_a_part_of_a_model_is_smaller():
    more = ["--steps", 1, "--device", "meta", "--dtype", "float64"]
    holds = [
        re.search(r"each device holds (.*) parameters; .* moments, (.*) bytes", said).groups()
        for said in (simulated(train_gpt.main, "--size", n, *SMALL, *more) for n in (1, 4))
    ]
    (whole, whole_bytes), (part, part_bytes) = [[int(n.replace(",", "")) for n in row] for row in holds]
    split = 72 * 32 + 3 * 32 * 32 + 3 * 32 + 32 * 32 + 2 * 4 * 32 * 32 + 4 * 32  # what the four share
    assert whole - part == split * 3 // 4
    assert (whole_bytes, part_bytes) == (32 * whole, 32 * part)


def test_rank_0_alone_reports_progress():
    heard = []
    config = GPTConfig(1, 8, 2, alice().vocabulary, positions=8)
    results = Cluster(2).run(
        train, config, alice(), 3, batch=2, length=8, progress=lambda step, loss: heard.append((step, loss))
    )
    assert heard == list(enumerate(results[0][0]))
    assert results[0][0] == results[1][0]


def test_many_steps_make_few_lines():
    said = simulated(train_gpt.main, "--size", 1, *SMALL, "--steps", 90, "--hidden", 8, "--batch", 1)
    assert list(losses(said)) == [*range(0, 90, 4), 89]


def test_four_devices_unless_a_number_is_given():
    assert simulated(train_gpt.main, *SMALL, "--steps", 1, "--device", "meta").startswith("Cluster(4)")


@pytest.mark.parametrize("number", [0, -1, "two", 1.5])
def test_numbers_that_are_none(number, capsys):
    with pytest.raises(SystemExit):
        simulated(train_gpt.main, "--size", number)
    assert f"argument --size: {number} is not an integer of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data-parallel", 3], "4 devices cannot be divided into 3 equal replicas; data_parallel must divide 4"),
        (["--data-parallel", 8], "4 devices cannot be divided into 8 equal replicas; data_parallel must divide 4"),
        (["--size", 3], "4 heads cannot be split over 3 devices: possible are 1, 2, 4"),
        (["--heads", 5], "a hidden size of 32 cannot be divided into 5 heads"),
        (["--data-parallel", 4, "--batch", 3], "3 samples, fewer than devices. Take a batch of at least 4"),
        (["--device", "meta", "--save", "x"], "on --device meta there are no weights. Train on cpu or cuda"),
        (["--save", "."], "--save .: this is a folder. Name a file in it"),
        (["--save", __file__ + "/x"], "File exists"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(SystemExit) as ended:
        simulated(train_gpt.main, *SMALL, *options)
    assert ended.value.code.startswith("train_gpt: ")
    assert message in ended.value.code


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none; this machine has one")
def test_no_gpu():
    with pytest.raises(SystemExit, match="--device cuda: this PyTorch sees no GPU.*or take --device cpu"):
        simulated(train_gpt.main, *SMALL, "--device", "cuda")
