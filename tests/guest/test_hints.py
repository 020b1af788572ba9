"""Errors that say it badly get a sentence."""

import importlib
import urllib.error

import pytest

from lib.guest import hints
from lib.guest.command import main


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), "python -m pip install pyyaml"),
        (ModuleNotFoundError("No module named 'sklearn.svm'", name="sklearn.svm"), "pip install scikit-learn"),
        (ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken"), "pip install tiktoken"),
        (
            ModuleNotFoundError("No module named 'flash_attn'", name="flash_attn"),
            "ask the program for its plain PyTorch",
        ),
        (urllib.error.URLError("[Errno -3] Temporary failure in name resolution"), "something from the network"),
        (type("NoSuchProcess", (Exception,), {})("pid=7"), "psutil.Process()"),
        (RuntimeError("Found no NVIDIA driver on your system"), "--no-gpu"),
        (SystemExit("requires at least 2 GPUs, got 0"), "--no-gpu"),
    ],
)
def test_what_to_do(error, sentence):
    assert sentence in hints.hint(error)


def test_names_of_builds_for_gpus(tmp_path, capsys):
    script = tmp_path / "train.py"
    for line in ("dist.ProcessGroupNCCL.Options()", "from torch.distributed import ProcessGroupNCCL"):
        script.write_text(f"import torch.distributed as dist\n{line}\n")
        assert main(["--nproc-per-node=2", "--no-gpu", str(script)]) == 1
        assert "This PyTorch is built for the CPU and has no such name" in capsys.readouterr().err


def test_errors_that_speak_for_themselves():
    assert hints.hint(ValueError("the batch has 3 texts")) is None
    assert hints.hint(RuntimeError("no CUDA"), no_gpu=True) is None
    assert hints.hint(AttributeError("module 'mytorch' has no attribute 'use_cuda'"), no_gpu=True) is None
    error = ValueError("no data")
    error.__cause__ = OSError("Max retries exceeded with url: /wikitext")
    assert "Fetch it once" in hints.hint(error)  # what caused it counts too


@pytest.fixture
def singleton(tmp_path, monkeypatch):
    package = tmp_path / "site-packages/one_state"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "made = []\n\n\ndef make():\n    if made:\n        raise ValueError('State is already initialized')\n"
        "    made.append(1)\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    importlib.invalidate_caches()
    script = tmp_path / "script/train.py"
    script.parent.mkdir()
    script.write_text("import one_state\none_state.make()\n")
    return str(script)


def test_a_package_with_one_state_for_the_process(singleton, capsys):
    assert main(["--nproc-per-node=2", singleton]) == 1
    said = capsys.readouterr().err
    assert "rank 1 of 2: ValueError: State is already initialized" in said
    assert "With --own one_state each device imports it for itself" in said
    assert main(["--nproc-per-node=2", "--own=one_state", singleton]) == 0


def test_a_program_that_counts_gpus_and_leaves(tmp_path, capsys):
    script = tmp_path / "train.py"
    script.write_text("import torch\nif torch.cuda.device_count() < 2:\n    print('too few')\n    exit()\n")
    assert main([str(script)]) == 0
    assert "--gpus 4 says how many it finds" in capsys.readouterr().err
