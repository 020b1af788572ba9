"""The same command simulated and under torchrun: the same losses, the same weights, the same bytes, the same text."""

import re
from pathlib import Path

import pytest
import torch
from oracles.commands import SMALL, exact, losses, simulated, torchrun
from safetensors.torch import load_file

from lib.examples import generate_text, train_gpt

CASES = {  # in groups of two, every order of additions is the same: a + b = b + a
    "grid": (4, ["--data-parallel", 2]),
    "zero": (2, ["--data-parallel", 2, "--zero", 3, "--accumulate", 2, "--clip", 100, "--validation", 0.1]),
    "pair": (2, ["--sequence-parallel", "--dtype", "float64"]),
}
STEPS = 4
FEW = [*SMALL, "--steps", STEPS]
MODULE = "lib.examples.train_gpt"


def traffic(said):
    """The meters' table."""
    return [line.split() for line in said.splitlines() if re.match(r" +\d+ +\w+ ", line)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def real(folder):
    """By case, what was said; the pair also writes a text."""
    files = {name: folder / f"real {name}" / "model.safetensors" for name in CASES}
    options = {name: [*FEW, *more] for name, (_, more) in CASES.items()}
    script = Path(__file__).with_name("train_and_generate.py")
    return torchrun(
        grid=(4, "-m", MODULE, *options["grid"], "--save", files["grid"]),
        zero=(2, "-m", MODULE, *options["zero"], "--save", files["zero"]),
        pair=(2, script, files["pair"], *options["pair"]),
    )


@pytest.fixture(scope="module", params=CASES)
def both(request, real, folder):
    """By kind: what was said, and the weights that were saved."""
    size, more = CASES[request.param]
    files = {kind: folder / f"{kind} {request.param}" / "model.safetensors" for kind in ("simulated", "real")}
    ours = simulated(train_gpt.main, "--size", size, *FEW, *more, "--save", files["simulated"])
    if request.param == "pair":
        ours += simulated(
            generate_text.main, "--weights", files["simulated"], "--count", 20, "--temperature", 0.7, "--size", size
        )
    said = {"simulated": ours, "real": real[request.param]}
    return {kind: (said[kind], load_file(file)) for kind, file in files.items()}


def test_the_same_losses(both):
    ours, theirs = (losses(said) for said, _ in both.values())
    assert ours == theirs
    assert list(ours) == list(range(STEPS))
    assert ours[0] > 4.2
    assert ours[STEPS - 1] < 3.9


def test_the_same_weights_to_the_last_bit(both):
    (_, ours), (_, theirs) = both.values()
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert x.dtype == theirs[name].dtype
        assert torch.equal(x, theirs[name]), name


def test_the_same_lines_and_text(both):
    (ours, theirs) = (exact(said) for said, _ in both.values())
    kinds = [re.sub(r"^\w+(?=\(\d\))", "Devices", said).replace("simulated ", "real ") for said in (ours, theirs)]
    assert kinds[0] == kinds[1]
    assert (ours[:8], theirs[:9]) == ("Cluster(", "Torchrun(")


def test_every_device_tells_what_it_sent(both):
    said, _ = both["real"]
    size = int(said[len("Torchrun(")])
    table = traffic(said)
    assert sorted({row[0] for row in table}) == [str(rank) for rank in range(size)]
    assert all(int(n.replace(",", "")) > 0 for row in table for n in row[2:])


def test_as_on_one_device(both, folder):
    file = folder / "one" / "model.safetensors"
    options = ["--validation", 0.1] if "validation" in both["real"][0] else []
    said = simulated(train_gpt.main, "--size", 1, *FEW, *options, "--dtype", "float64", "--save", file)
    one = load_file(file)
    several, state = both["simulated"]
    atol = 1e-9 if next(iter(state.values())).dtype == torch.float64 else 1e-5
    for step, loss in losses(said).items():
        assert abs(losses(several)[step] - loss) < 1e-6
    for name, x in one.items():
        torch.testing.assert_close(*(without_keys(name, w).double() for w in (state[name], x)), rtol=0, atol=atol)


def without_keys(name, x):
    """The loss does not depend on the biases of the keys: their gradients are rounding errors, AdamW makes steps of
    them."""
    if not name.endswith("attn.c_attn.bias"):
        return x
    queries, _, values = x.chunk(3)
    return torch.cat([queries, values])


def test_on_meta_there_are_shapes_and_no_numbers(real):
    size, more = CASES["grid"]
    with_numbers = [line for line in real["grid"].splitlines() if not line.startswith(("step", "saved"))]
    said = simulated(train_gpt.main, "--size", size, *FEW, *more, "--device", "meta").splitlines()
    assert said[0].startswith("Cluster(4): a GPT of ")
    assert said[0].replace("Cluster", "Torchrun").replace("on meta", "on cpu") == with_numbers[0]
    assert said[1:] == with_numbers[1:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; this machine has none")
def test_a_gpu_for_each_process():
    gpus = min(2, torch.cuda.device_count())
    command = (gpus, "-m", MODULE, *SMALL, "--dtype", "float64", "--device", "cuda")
    said = torchrun(gpus=command)["gpus"]
    assert "float64 on cuda" in said
    found = losses(said)
    assert list(found) == list(range(20))
    assert found[19] < found[0] - 0.5
