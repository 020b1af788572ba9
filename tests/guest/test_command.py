"""The command in this process: exit codes, messages, reports, and what each device has for itself."""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from lib.guest.command import main

PROGRAMS = Path(__file__).parent / "programs"


def run(*arguments):
    return main([*map(str, arguments)])


@pytest.fixture(autouse=True)
def leaves_no_trace():
    def process():
        return (
            Path.cwd(), environment(), list(sys.argv), list(sys.path), sys.stdout, guests(),
            os.getpid, os.fork, signal.signal, time.time, logging.root.level,
            list(logging.root.handlers), loggers(), dist.is_initialized(),
            dist.TCPStore, sys.modules["torch.multiprocessing.spawn"].start_processes, sys.modules["__main__"],
        )  # fmt: skip

    before = process()
    yield
    after = process()
    assert [a for a, b in zip(after, before, strict=True) if a != b] == []


def guests():
    files = {name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
    return {name for name, file in files.items() if file.startswith(str(PROGRAMS)) or name == "__mp_main__"}


def loggers():
    """Those of the programs. A library that is imported meanwhile makes some, and they stay as it does."""
    return {name for name in logging.root.manager.loggerDict if name.partition(".")[0] not in sys.modules}


def environment():
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


BAD = {  # case: (exit code, what the message says)
    "raises_at_import": (1, "rank 0 of 4: RuntimeError: not on this machine\n  bad.py, line 76, in <module>: raise"),
    "raises": (1, 'rank 2 of 4: ValueError: a batch is missing\n  bad.py, line 82, in <module>: globals()[case]()\n'
               '  bad.py, line 12, in raises: raise ValueError("a batch is missing")'),
    "exits": (3, "rank 1 left the program by sys.exit(3)\n  bad.py, line 82"),
    "exits_with_a_text": (1, "left the program by sys.exit('no checkpoint')"),
    "ends_early": (0, "4 devices simulated: 0 calls"),
    "ends_hard": (4, "sys.exit(4)"),
    "forks": (1, "rank 0: fork() would copy the simulation with all of its devices. Start devices with"),
    "kills": (1, "kill() sends a signal to the whole simulation"),
    "twice": (1, "initialize the default process group twice"),
    "never": (1, "Default process group has not been initialized"),
    "own_world": (1, "world_size=8"),
    "leaves_a_barrier": (1, "rank  waits for"),
    "other_shapes": (1, "every device must bring the same shape"),
    "monitored": (1, "monitored_barrier looks for a process that hangs, which is named here without it. Call dist"),
    "wants_a_package": (1, "bad.py, line 59, in wants_a_package: import yaml_of_nobody  # noqa: F401\nInstall the "
                        "package, in the environment that this Python is from: python -m pip install yaml-of-nobody."),
    "wants_a_kernel": (1, "flash_attn is made of GPU kernels, which simulated devices do not have: ask the program"),
    "wants_data": (1, "The program wants something from the network that it cannot reach, such as a data set"),
    "wants_gpus": (1, "The program asks for GPUs. With --no-gpu it gets one for each device, pretended on the CPU;"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_goes_wrong_is_said_with_rank_line_and_sentence(case, capsys):
    code, sentence = BAD[case]
    assert run("--nproc-per-node", 4, PROGRAMS / "bad.py", case) == code
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert len(said.splitlines()) < 15
    if case in ("leaves_a_barrier", "other_shapes"):
        assert "bad.py" in said or "leaves_a_barrier, line 43: dist.barrier()" in said or "other_shapes, line" in said


def test_a_script_that_does_not_exist(capsys):
    assert run("--nproc-per-node", 2, "nowhere.py") == 2
    assert "there is no file 'nowhere.py'" in capsys.readouterr().err
    assert run("-m", "nowhere.at_all") == 2
    assert "nowhere" in capsys.readouterr().err


def test_each_device_has_its_own(capsys):
    assert run("--nproc-per-node=3", "--hardware=H100", PROGRAMS / "own.py") == 0
    said = capsys.readouterr()
    assert [f"rank {rank} of 3 virtual" in said.out for rank in range(3)] == [True] * 3
    assert said.out.count("hello") == 1
    assert said.err.count("log 0: hello") == 1
    assert "its own clock" not in said.err


def test_the_rank_before_each_line(capsys):
    assert run("--nproc-per-node=3", "--prefix", "--local-ranks-filter=0,2", PROGRAMS / "own.py") == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert {line[:8] for line in lines if line} == {"rank 0: ", "rank 2: "}
    assert "rank 0: rank 0 of 3 real" in lines
    assert "rank 0:  here" in lines
    assert "rank 0: log 0: hello" in said.err
    assert "shows the time of this simulation" in said.err


def test_who_takes_print_away_takes_it_from_nobody_else(tmp_path, capsys):
    script = tmp_path / "train.py"
    script.write_text(
        "import builtins, io, os, sys\nimport torch.distributed as dist\ndist.init_process_group('gloo')\n"
        "if dist.get_rank() == 1:\n    builtins.print = lambda *text: None\n"
        "if dist.get_rank() == 2:\n    sys.stdout = io.StringIO()\n"
        "dist.barrier()\nprint('rank', dist.get_rank())\n"
    )
    assert run("--nproc-per-node=4", "--prefix", script) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == ["rank 0: rank 0", "rank 3: rank 3"]


def test_files_that_cannot_be_written_are_named_before_the_run(capsys):
    with pytest.raises(SystemExit):
        run("--nproc-per-node=2", "--report-file=/nowhere/report.json", PROGRAMS / "own.py")
    assert "--report-file=/nowhere/report.json: there is no folder /nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["tcp", "queue", "met", "url", "file"])
def test_other_ways_to_meet(case, capsys):
    assert run("--nproc-per-node=3", PROGRAMS / "stores.py", case) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == [f"{case} {rank} 3.0" for rank in range(3)]


def test_who_looks_again_and_again_lets_the_others_go_first(tmp_path):
    assert run("--nproc-per-node=3", PROGRAMS / "stores.py", "polling", tmp_path / "made") == 0


def test_a_key_that_nobody_sets_is_a_deadlock(capsys):
    assert run("--nproc-per-node=2", PROGRAMS / "stores.py", "wait") == 1
    said = capsys.readouterr().err
    assert "store.wait(['never'])" in said
    assert 'store.wait(["never"])' in said


@pytest.mark.parametrize("case", ["spawn", "later", "queue", "subclass"])
def test_programs_that_start_their_own_processes(case, capsys, tmp_path):
    options = ["--report-file", tmp_path / "report.json", *(["--hardware=H100", "--gpus=2"] if case == "later" else [])]
    assert run(*options, PROGRAMS / "spawns.py", case) == 0
    said = capsys.readouterr()
    assert said.out == f"{case} [60.0, 61.0, 62.0]\n"
    assert "3 devices simulated: 3 calls" in said.err
    (report,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert len(report["devices"]) == (3 if case == "later" else 0)
    assert report["size"] == 3
    assert report["lines"][0]["source"] == "dist.all_reduce(x, group=GROUP)"


def test_processes_of_libraries_stay_real(capsys):
    assert run("--nproc-per-node=2", PROGRAMS / "workers.py") == 0
    assert capsys.readouterr().out == "[1, 4, 9] 12.0\n" * 2


def test_a_process_that_fails(capsys):
    assert run(PROGRAMS / "spawns.py", "fails") == 1
    said = capsys.readouterr().err
    assert "rank 1 of 3: ValueError: not today\n" in said
    assert 'in work: raise ValueError("not today")' in said


def test_report_and_trace(capsys, tmp_path):
    trace = tmp_path / "trace.json"
    options = ["--nnodes=2", "--nproc-per-node=2", "--hardware=H100", "--report", f"--trace={trace}"]
    assert run(*options, PROGRAMS / "stores.py", "url") == 0
    said = capsys.readouterr().out
    assert "4 devices simulated: 4 calls" in said
    assert "<module>: dist.all_reduce(x)" in said
    assert json.loads(trace.read_text())["traceEvents"]
