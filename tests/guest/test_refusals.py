"""What is left out says so and changes nothing else. (What is refused: the bad programs of test_command.py.)"""

import warnings
from pathlib import Path

import torch

from lib.guest.command import main

PROGRAM = Path(__file__).parent / "programs/tools.py"


def test_profiler_and_compiler_are_left_out_aloud(capsys):
    before = torch.profiler.profile, torch.compile, torch.nn.Module.compile
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert main(["--nproc-per-node=3", "--prefix", str(PROGRAM)]) == 0
    out = capsys.readouterr()
    assert sorted(out.out.splitlines()) == [f"rank {rank}: done" for rank in range(3)]
    assert "rank 1: step 2" in out.err
    assert {str(w.message).split(" is left out")[0] for w in said} >= {"torch.compile", "torch.profiler"}
    assert (torch.profiler.profile, torch.compile, torch.nn.Module.compile) == before
