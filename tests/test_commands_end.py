"""The commands of `lib` are ended by others, without a traceback: Ctrl-C in the imports, a pipe that nobody reads."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRINTS = "for step in range(3):\n    print('step', step, flush=True)\n"
# Whether Python writes at once or at the end: both must be seen to fail.
AT_ONCE = {"simulate", "costs", "train_experts"}
COMMANDS = {
    "simulate": ["lib.simulate", "--nproc-per-node", "2", "{script}"],
    "simulate --report": ["lib.simulate", "--nproc-per-node", "1", "--report", "{silent}"],
    "simulate --help": ["lib.simulate", "--help"],
    "costs": ["lib.costs", "--model", "gpt2"],
    "planner": ["lib.costs.planner", "--model", "gpt2", "--devices", "2"],
    "train_gpt": ["lib.examples.train_gpt", "--size", "1", "--steps", "1", "--device", "meta"],
    "train_experts": ["lib.examples.train_experts", "--steps", "1"],
    "generate_text": ["lib.examples.generate_text", "--help"],
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What each command says and how it ends, when nobody reads its output."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "prints.py").write_text(PRINTS)
    (folder / "silent.py").write_text("")
    files = {"script": folder / "prints.py", "silent": folder / "silent.py"}
    read, write = os.pipe()
    os.close(read)
    try:
        runs = {}
        for name, words in COMMANDS.items():
            command = [sys.executable, "-m", *(word.format(**files) for word in words)]
            env = os.environ | {"PYTHONUNBUFFERED": "1" if name in AT_ONCE else ""}
            runs[name] = subprocess.Popen(command, cwd=ROOT, env=env, stdout=write, stderr=subprocess.PIPE, text=True)
        return {name: (run.communicate(timeout=120)[1], run.returncode) for name, run in runs.items()}
    finally:
        os.close(write)


@pytest.mark.parametrize("name", COMMANDS)
def test_where_nobody_reads_nothing_is_said_of_it(ends, name):
    said, code = ends[name]
    assert not any(word in said for word in ("Broken pipe", "BrokenPipe", "Traceback"))
    assert code == 141  # as of a command that SIGPIPE ends


@pytest.mark.parametrize("command", sorted({words[0] for words in COMMANDS.values()}))
def test_an_interruption_of_the_imports_is_no_traceback(command, tmp_path):
    # PyTorch takes long, and somebody has no patience.
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    run = subprocess.run(
        [sys.executable, "-m", command],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (run.stderr, run.returncode) == ("", -signal.SIGINT)


def test_an_interruption_of_the_work_is_130():
    prog = (  # in a command, Ctrl-C is an exception again as soon as it runs: what it has begun is cleaned up
        "import signal, sys; sys.argv = ['-m']; from lib.command import run_command\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL\n"
        "run_command(lambda: signal.raise_signal(signal.SIGINT))"
    )
    run = subprocess.run([sys.executable, "-c", prog], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (run.stderr, run.returncode) == ("", 130)


def test_a_program_that_only_imports_lib_keeps_its_signals():
    prog = "import signal, lib; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    run = subprocess.run([sys.executable, "-c", prog], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stdout == "True\n"
