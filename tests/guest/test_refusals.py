"""What is left out says so and changes nothing else. (What is refused: the bad programs of test_command.py.)"""

import json
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
import torch.distributed.rpc as rpc
from torch.autograd.profiler import profile as OldProfiler
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.profiler import profile as Profiler

from lib.devices import Cluster
from lib.guest.command import main
from lib.guest.program import guest

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


def test_every_profiler_is_left_out_by_whatever_name(tmp_path):
    """Real ones, one on each device, end the process."""

    def program():
        dist.init_process_group("gloo")
        with OldProfiler() as old:
            dist.barrier()
        name = tmp_path / f"{dist.get_rank()}.json"
        with Profiler(on_trace_ready=lambda recorded: recorded.export_chrome_trace(str(name))) as new:
            dist.barrier()
        return len(old.function_events), len(new.events()), json.loads(name.read_text())

    with pytest.warns(UserWarning, match="it records nothing here") as said:
        assert Cluster(2).run(guest(program)) == [(0, 0, {"traceEvents": []})] * 2
    assert {Path(warning.filename) for warning in said} == {Path(__file__)}
    with OldProfiler() as old:
        torch.ones(2)
    assert old.function_events


def test_a_checkpoint_is_not_saved_by_a_process_of_its_own(tmp_path):
    def program():
        dist.init_process_group("gloo")
        kind = AsyncCheckpointerType.PROCESS
        checkpoint.async_save({"x": torch.ones(2)}, checkpoint_id=tmp_path, async_checkpointer_type=kind)

    with pytest.raises(
        RuntimeError, match=r"rank \d: async_save in a process of its own.*AsyncCheckpointerType.THREAD"
    ):
        Cluster(2).run(guest(program))


def test_functions_of_other_processes_are_not_called():
    """They would wait for each other for ever."""
    before = rpc.init_rpc
    with pytest.raises(RuntimeError, match=r"rank \d: init_rpc lets .* no turn.* with real processes"):
        Cluster(2).run(guest(lambda: rpc.init_rpc("worker", rank=0, world_size=2)))
    assert rpc.init_rpc is before
