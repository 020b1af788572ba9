"""The two commands as a reader gives them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT, PROGRAMS = Path(__file__).parents[2], Path(__file__).parent / "programs"


def command(*words, folder, said=""):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(line, cwd=folder, env=environment, input=said, capture_output=True, text=True, timeout=120)


def test_simulate(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "package/parts.py").write_text("GROUP = []\n")
    (tmp_path / "package/train.py").write_text(
        "import sys\nimport torch\nimport torch.distributed as dist\nfrom .parts import GROUP\n"
        "dist.init_process_group('gloo')\nGROUP.append(input())\nx = torch.ones(3)\ndist.all_reduce(x)\n"
        "print(GROUP, x.tolist(), sys.argv[1:], __name__)\ndist.barrier()\nsys.exit(dist.get_rank() * 7)\n"
    )
    words = ["lib.simulate", "--nproc_per_node=2", "--prefix", "-m", "package.train", "--steps", "3"]
    done = command(*words, folder=tmp_path, said="a\nb\n")
    assert done.returncode == 7, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"rank {rank}: ['{line}'] [2.0, 2.0, 2.0] ['--steps', '3'] __main__" for rank, line in enumerate("ab")
    ]
    assert "rank 1 left the program by sys.exit(7)" in done.stderr
    assert "2 devices simulated: 4 calls, 24 bytes sent" in done.stderr


def test_a_test_suite_of_others(capsys, monkeypatch):
    monkeypatch.chdir(PROGRAMS)
    words = ["-q", "-p", "lib.guest.pytest_plugin", "-p", "no:cacheprovider", "--noconftest", "--rootdir=."]
    assert pytest.main([*words, "suite_of_others.py"]) == 0  # in this process: to start one takes seconds
    said = capsys.readouterr().out
    assert "5 passed" in said
    assert "simulated instead of started: 2 x 2, 1 x 3, 1 x 4 (runs x devices)" in said
