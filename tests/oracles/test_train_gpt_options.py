"""The program that trains a GPT: every option, and what cannot be."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles.commands import SMALL, exact, losses, one_thread, simulated
from oracles.test_train_gpt import without_keys
from safetensors.torch import load_file

from lib import Cluster, dense_state
from lib.examples import generate_text, train_gpt
from lib.examples.recipe import Recipe
from lib.examples.small_training import gathered
from lib.examples.text import alice
from lib.examples.trainer import Trainer
from lib.examples.training import train
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT
from lib.parallel.gpt.weights import read_gpt2


def test_what_one_device_holds():
    said = simulated(train_gpt.main, "--size", 1, *SMALL, "--steps", 1, "--device", "meta")
    config = GPTConfig(1, 32, 4, alice().vocabulary, positions=32)
    assert f"each device holds {config.parameters:,} parameters; " in said
    steps_counted = 4 * len(config.shapes())
    assert f", {16 * config.parameters + steps_counted:,} bytes\n" in said


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
    assert " float64 on cpu, 2 replicas\n" in said
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
        re.search(r"each device holds (.*) parameters; .* state, (.*) bytes", said).groups()
        for said in (simulated(train_gpt.main, "--size", n, *SMALL, *more) for n in (1, 4))
    ]
    (whole, whole_bytes), (part, part_bytes) = [[int(n.replace(",", "")) for n in row] for row in holds]
    split = 72 * 32 + 3 * 32 * 32 + 3 * 32 + 32 * 32 + 2 * 4 * 32 * 32 + 4 * 32  # what the four share
    assert whole - part == split * 3 // 4
    assert (whole_bytes - 32 * whole, part_bytes - 32 * part) == (4 * 16, 4 * 16)  # AdamW counts the steps of each


def test_rank_0_alone_reports_progress():
    heard = []
    config = GPTConfig(1, 8, 2, alice().vocabulary, positions=8)
    results = Cluster(2).run(
        train, config, alice(), 3, batch=2, length=8, progress=lambda step, loss: heard.append((step, loss))
    )
    assert heard == list(enumerate(results[0][0]))
    assert results[0][0] == results[1][0]


def test_many_steps_make_few_lines():
    said = simulated(train_gpt.main, "--size", 1, *SMALL, "--steps", 44, "--hidden", 8, "--batch", 1)
    assert list(losses(said)) == [*range(0, 44, 2), 43]


def test_four_devices_unless_a_number_is_given():
    assert simulated(train_gpt.main, *SMALL, "--steps", 1, "--device", "meta").startswith("Cluster(4)")


@pytest.mark.parametrize("number", [0, -1, "two", 1.5])
def test_numbers_that_are_none(number, capsys):
    with pytest.raises(SystemExit):
        simulated(train_gpt.main, "--size", number)
    assert f"argument --size: {number} is not an integer of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, "two"])
def test_seeds_that_are_none(seed, capsys):
    with pytest.raises(SystemExit):
        simulated(train_gpt.main, "--seed", seed)
    assert f"argument --seed: {seed} is not an integer from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data-parallel", 3], "4 devices cannot be divided into 3 equal replicas; data_parallel must divide 4"),
        (["--data-parallel", 8], "4 devices cannot be divided into 8 equal replicas; data_parallel must divide 4"),
        (["--size", 3], "4 heads cannot be split over 3 devices: possible are 1, 2, 4"),
        (["--heads", 5], "a hidden size of 32 cannot be divided into 5 heads"),
        (
            ["--data-parallel", 4, "--batch", 3],
            "a batch of 3 texts over 4 replicas leaves one with 0, which cannot be cut into 1 micro-batch. "
            "Take a batch of at least 4",
        ),
        (["--device", "meta", "--save", "x"], "--save: on --device meta there are no weights. Train on cpu or cuda"),
        (["--device", "meta", "--checkpoint", "x"], "--checkpoint: on --device meta there are no weights"),
        (["--accumulate", 9], "a batch of 8 texts over 1 replica leaves one with 8, which cannot be cut into 9"),
        (["--zero", 3, "--recompute", "full"], "zero=3 with recompute='full'"),
        (["--clip", 0], "clip=0.0 must be above 0"),
        (["--rate", "nan"], "rate=nan must be above 0"),
        (["--rate", -1], "rate=-1.0 must be above 0"),
        (["--validation", 1], "--validation 1.0: this is a share of the text"),
        (["--validation", 0.0001], "the part for --validation has 15 tokens: take --length below that"),
        (["--length", 200_000], "the text has 148414 tokens: take --length below that, or a longer text"),
        (["--text", "nowhere.txt"], "No such file or directory: 'nowhere.txt'"),
        (["--text", __file__, "--tokens", "characters"], "--tokens characters: only for the book's text"),
        (["--tokens", "bpe", "--vocabulary", 100], "a vocabulary of 100 pieces: it begins with the 256 bytes"),
        (["--resume"], "--resume: from which folder? Name it with --checkpoint DIR"),
        (["--resume", "--checkpoint", "nowhere"], "--resume: there is no complete checkpoint in nowhere"),
        (["--vocabulary", 300], "--vocabulary: it does something with --tokens bpe alone"),
        (["--every", 5], "--every: it does something with --checkpoint DIR alone"),
        (["--unsaved"], "--unsaved: it does something with --checkpoint DIR alone"),
        (["--no-master-weights"], "--no-master-weights: it does something with --dtype bfloat16 alone"),
        (["--device", "meta", "--validation", 0.1], "--validation: it does something with --device cpu or cuda alone"),
        (["--checkpoint", __file__], "this is a file. Name a folder"),
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


TRAINED = ["--steps", 4, "--layers", 1, "--hidden", 16, "--heads", 2, "--batch", 6, "--length", 16]
TRAINED += ["--dtype", "float64"]


def trained(tmp_path, name, *options):
    """What was said, and the weights."""
    file = tmp_path / name / "model.safetensors"
    said = simulated(train_gpt.main, *TRAINED, *options, "--save", file)
    return exact(said), load_file(file)


COMMON = ["--steps", 3, "--validation", 0.1, "--clip", 0.5, "--text", Path(train_gpt.__file__), "--tokens", "bytes"]
# On 4 devices there are two replicas of two; on 2, replicas of one, where nothing is split but what ZeRO splits.
CHANGES = [
    (4, ["--zero", 2, "--sequence-parallel"]), (4, ["--accumulate", 3, "--recompute", "full"]),
    (4, ["--recompute", "selective", "--zero", 3]), (4, ["--accumulate", 2, "--zero", 1]),
    (4, ["--accumulate", 3, "--zero", 2]), (2, ["--accumulate", 2, "--zero", 3]),
]  # fmt: skip


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("one"), "one", "--size", 1, *COMMON)


@pytest.mark.parametrize(
    ("size", "options"), CHANGES, ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None
)
def test_no_option_changes_the_training(size, options, on_one_device, tmp_path):
    """Losses, norms and weights are those of one device, clipped or not."""
    one, weights = on_one_device
    said, found = trained(tmp_path, "several", "--size", size, "--data-parallel", 2, *COMMON, *options)
    lines = [[line for line in text.splitlines() if line.startswith("step")] for text in (one, said)]
    assert len(lines[0]) == 3
    for expected, line in zip(*lines, strict=True):
        assert numbers(line) == pytest.approx(numbers(expected), abs=2e-4)
    for name, x in weights.items():
        torch.testing.assert_close(without_keys(name, found[name]), without_keys(name, x), rtol=0, atol=1e-8, msg=name)


def numbers(line):
    return [float(number) for number in re.findall(r"\d+\.?\d*", line)]


def test_the_norm_and_the_clipped_step_are_those_of_pytorch():
    config = GPTConfig(1, 16, 2, alice().vocabulary, positions=16)
    recipe = Recipe(steps=100, batch=6, length=16, clip=0.3, dtype=torch.float64)
    batch = next(alice().batches(1, 6, 16))

    def plain(group):
        torch.manual_seed(0)
        model = GPT(config, group).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate / 25, betas=(0.9, 0.95), weight_decay=0.1)
        model(*batch).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        return norm, dense_state([model])

    def ours(group, zero, dp):
        trainer = Trainer(group, config, replace(recipe, zero=zero, data_parallel=dp))
        _, norm = trainer.step(*batch)
        return norm, gathered(trainer.own_weights(), trainer.model, trainer.mesh.tp)

    [(norm, weights)] = Cluster(1).run(plain)
    assert norm > 0.6  # so that it was clipped
    for zero in range(4):
        for found, state in Cluster(4).run(ours, zero, 2):
            assert float(found) == pytest.approx(float(norm), abs=1e-12)
            for name, x in weights.items():
                torch.testing.assert_close(without_keys(name, state[name]), without_keys(name, x), rtol=0, atol=1e-9)


def test_master_weights_keep_what_bfloat16_would_lose(tmp_path):
    """Steps of a thousandth: alone, bfloat16 rounds them to nothing."""
    options = ["--size", 2, "--steps", 15, "--rate", 2e-4, "--layers", 1, "--hidden", 16, "--heads", 2, "--length", 16]
    said = {
        name: losses(simulated(train_gpt.main, *options, "--dtype", dtype, *more))[14]
        for name, (dtype, *more) in {
            "exact": ["float64"], "masters": ["bfloat16"], "zero": ["bfloat16", "--data-parallel", 2, "--zero", 2],
            "none": ["bfloat16", "--no-master-weights"],
        }.items()
    }  # fmt: skip
    assert abs(said["masters"] - said["exact"]) < 0.5 * abs(said["none"] - said["exact"])
    assert abs(said["zero"] - said["exact"]) < 0.5 * abs(said["none"] - said["exact"])


@pytest.mark.parametrize(
    "options",
    [["--size", 1], ["--size", 4, "--data-parallel", 2], ["--size", 2, "--data-parallel", 2, "--zero", 1],
     ["--size", 4, "--data-parallel", 2, "--zero", 3],
     ["--size", 2, "--data-parallel", 2, "--zero", 2, "--dtype", "bfloat16"]],
    ids=lambda options: " ".join(map(str, options)),
)  # fmt: skip
def test_a_resumed_training_is_the_one_that_never_stopped(options, tmp_path):
    folder = ["--checkpoint", tmp_path / "checkpoints", "--every", 2]
    whole, expected = trained(tmp_path, "whole", *options, *folder)
    for late in (tmp_path / "checkpoints").glob("step-000004"):
        (late / "manifest.json").unlink()  # as if it had been interrupted while it wrote this one
    said, found = trained(tmp_path, "again", *options, *folder, "--resume")
    assert "resumed after 2 of 4 steps" in said
    steps = [[line for line in text.splitlines() if re.match("step +[23] ", line)] for text in (whole, said)]
    assert len(steps[0]) == 2
    assert steps[0] == steps[1]
    for name, x in expected.items():
        assert torch.equal(found[name], x), name


GRID = ["--size", 4, "--data-parallel", 2]


@pytest.fixture(scope="module")
def on_a_grid(tmp_path_factory):
    """A training with a checkpoint after 2 and after 4 steps: what was said, the weights, and the folder."""
    place = tmp_path_factory.mktemp("grid")
    return *trained(place, "whole", *GRID, "--checkpoint", place / "c", "--every", 2), place / "c"


def test_what_cannot_be_resumed_is_named(on_a_grid, tmp_path):
    shutil.copytree(on_a_grid[2], tmp_path / "c")
    folder = ["--checkpoint", tmp_path / "c", "--every", 2]
    for options, message in [
        ([], "a training stands there. --resume it, or name another folder"),
        (["--resume", "--rate", 0.5], "was written with rate=0.01, and this is rate=0.5: resume with the options of"),
        (["--resume", "--hidden", 32], "was written with hidden=16, and this is hidden=32"),
    ]:
        with pytest.raises(SystemExit, match=re.escape(message)):
            simulated(train_gpt.main, *TRAINED, *GRID, *folder, *options)
    for name, text in (("one", "abc" * 90), ("other", "xyz" * 90)):
        (tmp_path / name).write_text(text)
    there = ["--size", 1, "--checkpoint", tmp_path / "bytes", "--every", 2, "--text"]
    simulated(train_gpt.main, *TRAINED, *there, tmp_path / "one")
    with pytest.raises(SystemExit, match="was written with text='.*', and this is text='.*': resume with"):
        simulated(train_gpt.main, *TRAINED, *there, tmp_path / "other", "--resume")
    damaged = tmp_path / "c" / "step-000004" / "rank-1.safetensors"
    damaged.write_bytes(b"short")
    said = simulated(train_gpt.main, *TRAINED, *GRID, *folder, "--resume")
    assert "not used: step-000004: rank-1.safetensors has 5 bytes in place of" in said
    assert "resumed after 2 of 4 steps" in said
    for place in (tmp_path / "c").glob("step-*"):
        (place / "rank-1.safetensors").write_bytes(b"short")
    with pytest.raises(SystemExit, match=r"no checkpoint in .* is whole: step-000004: rank-1.safetensors has 5 bytes"):
        simulated(train_gpt.main, *TRAINED, *GRID, *folder, "--resume")


def test_a_training_goes_on_on_other_devices(on_a_grid, tmp_path):
    """In another grid with another stage of ZeRO: the same losses, to the last digit that is printed."""
    whole, expected, folder = on_a_grid
    shutil.copytree(folder / "step-000002", tmp_path / "c" / "step-000002")
    folder = ["--checkpoint", tmp_path / "c", "--every", 2]
    said, found = trained(tmp_path, "again", "--size", 3, "--data-parallel", 3, "--zero", 2, *folder, "--resume")
    for step, loss in losses(said).items():
        assert loss == pytest.approx(losses(whole)[step], abs=1e-6), step
    assert min(losses(said)) == 2
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=0, atol=1e-5)


def test_a_checkpoint_that_cannot_be_written_stops_the_training_unless_it_is_told_to_go_on(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "step-000002").write_text("in the way")
    options = ["--size", 2, "--checkpoint", tmp_path / "c", "--every", 2]
    with pytest.raises(SystemExit, match="checkpoint of step 2: rank 0: File exists: .*; rank 1: .* as they were"):
        simulated(train_gpt.main, *TRAINED, *options)
    said = simulated(train_gpt.main, *TRAINED, *options, "--unsaved")
    assert "not saved: checkpoint of step 2: rank 0: File exists" in said
    assert list(losses(said)) == list(range(4))
    assert (tmp_path / "c" / "step-000004" / "manifest.json").exists()


def test_resume_if_there_is_any(tmp_path):
    """What torchrun starts again begins the first time, and goes on the second."""
    options = ["--size", 1, "--checkpoint", tmp_path / "c", "--every", 2, "--resume", "if-any"]
    first = simulated(train_gpt.main, *TRAINED, *options)
    shutil.rmtree(tmp_path / "c" / "step-000004")
    second = simulated(train_gpt.main, *TRAINED, *options)
    assert "resumed" not in first
    assert "resumed after 2 of 4 steps" in second
    assert losses(second)[3] == losses(first)[3]


def test_old_checkpoints_make_room(tmp_path):
    simulated(train_gpt.main, *TRAINED, "--size", 1, "--checkpoint", tmp_path / "c", "--every", 1)
    assert sorted(place.name for place in (tmp_path / "c").iterdir()) == ["lock", "step-000003", "step-000004"]


def test_a_training_that_blows_up_says_so():
    with pytest.raises(SystemExit, match="the loss of step .* is (nan|inf): take a lower --rate, or --clip 1"):
        simulated(train_gpt.main, *SMALL, "--size", 1, "--rate", 1e30)


def test_a_progress_line_is_one_line():
    said = simulated(train_gpt.main, *SMALL, "--size", 2, "--steps", 3, "--validation", 0.1)
    number, count = r"[\d.]+", r"[\d,]+"
    form = (
        rf"step +\d  loss {number}  validation {number}  norm {number}  \|  {number} ms  {count} tokens/s  "
        rf"MFU {number}%  peak memory {count} MB"
    )
    lines = [line for line in said.splitlines() if line.startswith("step")]
    assert len(lines) == 3
    assert all(re.fullmatch(form, line) for line in lines)


def test_pieces_are_saved_beside_the_weights_and_read_again(tmp_path):
    file = tmp_path / "model.safetensors"
    simulated(train_gpt.main, *SMALL, "--size", 2, "--tokens", "bpe", "--vocabulary", 300, "--save", file)
    said = simulated(generate_text.main, "--weights", tmp_path, "--prompt", "the cat", "--count", 5, "--size", 2)
    assert said.startswith("the cat")
    with pytest.raises(SystemExit, match="tokenizer.json beside it belongs to other weights. Take another folder"):
        simulated(train_gpt.main, *SMALL, "--size", 1, "--save", tmp_path / "other.safetensors")


def test_a_text_of_ones_own_in_bytes(tmp_path):
    (tmp_path / "own.txt").write_text("Füße und Grüße. " * 40, "utf-8")
    file = tmp_path / "weights" / "model.safetensors"
    simulated(train_gpt.main, *SMALL, "--size", 2, "--text", tmp_path / "own.txt", "--save", file)
    assert read_gpt2(file)[0].vocabulary == 256
    said = simulated(generate_text.main, "--weights", file, "--prompt", "Füße", "--count", 5, "--size", 2)
    assert said.startswith("Füße")


@pytest.mark.parametrize("module", [train_gpt, generate_text], ids=lambda module: module.__name__.split(".")[-1])
def test_an_interruption_is_no_traceback(module, monkeypatch, capsys):
    def interrupted(*options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run" if module is train_gpt else "read_model", interrupted)
    with pytest.raises(SystemExit) as caught:
        module.main(["--size", "1"] if module is train_gpt else ["--weights", "none"])
    assert caught.value.code == 130
    assert capsys.readouterr().err.endswith(": interrupted\n")
