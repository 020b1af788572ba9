"""The command line of the simulator is torchrun's: what is kept, what is refused, and how."""

import pytest
from torch.distributed.run import get_args_parser

from lib.guest import options


def test_the_flags_of_torchrun_in_each_spelling():
    for spelling in (["--nproc-per-node", "4"], ["--nproc_per_node", "4"], ["--nproc-per-node=4"], ["--nproc_per=4"]):
        got = options.read([*spelling, "train.py", "--nproc-per-node", "9", "-m"])
        assert (got.per_node, got.script, got.module) == (4, "train.py", False)
        assert got.arguments == ("--nproc-per-node", "9", "-m")  # what follows the script is the script's


def test_modules_nodes_and_hardware():
    got = options.read(["--nnodes=2", "--nproc-per-node=4", "--hardware", "H100", "-m", "package.train", "x"])
    assert (got.size, got.module, got.script, got.arguments) == (8, True, "package.train", ("x",))
    assert got.hardware.per_node == 4  # the network begins where the node ends
    got = options.read(
        ["--standalone", "--nnodes", "1:1", "--local-ranks-filter", "0,2", "--rdzv-id", "me", "train.py"]
    )
    assert (got.per_node, got.size, got.shown) == (None, 1, (0, 2))
    assert dict(got.environment)["TORCHELASTIC_RUN_ID"] == "me"


def test_torchruns_environment_counts(monkeypatch):
    monkeypatch.setenv("PET_NPROC_PER_NODE", "3")
    assert options.read(["train.py"]).per_node == 3


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--nproc-per-node=gpu"], "--nproc-per-node=gpu is no number of at least 1: what this machine has"),
        (["--nproc-per-node=0"], "--nproc-per-node=0 is no number"),
        (["--nnodes=1:4"], "no node joins or leaves here"),
        (["--standalone", "--nnodes=2"], "--standalone means one node, but --nnodes says 2"),
        (["--trace=out.json"], "add --hardware H100"),
        (["--max-restarts=3"], "not started again"),
        (["--hardware=TPU"], "invalid choice: 'TPU'"),
    ],
)
def test_what_cannot_be_is_one_sentence(given, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        options.read([*given, "train.py"])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_every_other_flag_of_torchrun_is_refused_by_name(capsys):
    refused = [a for a in get_args_parser()._actions if a.dest not in options.KEPT | {"help"}]
    assert len(refused) > 10
    for action in refused:
        value = [] if action.nargs == 0 else [action.choices[-1] if action.choices else "7"]
        with pytest.raises(SystemExit) as ended:
            options.read([action.option_strings[0], *value, "train.py"])
        assert ended.value.code == 2
        name = f"--{action.dest.replace('_', '-')}"
        assert f"{name} has no meaning here: {options.REASONS[action.dest]}" in capsys.readouterr().err
