"""A script under torchrun: its processes are the devices; without torchrun they are simulated."""

import re
from pathlib import Path

import pytest
from oracles.forked import Forked
from oracles.real_script import SIZE, everything, rank_of

from lib.devices import Cluster
from lib.real.torchrun import Torchrun, devices, launch

HERE = Path(__file__).parent
FAILURES = {  # what is said about it, once
    "fails_on_rank_1": "OurOwnError: on purpose",
    "fails_everywhere": "OurOwnError: on purpose",
    "leaves_on_rank_1": "RuntimeError: rank 1 of 2 left the program by sys.exit(3)",
    "waits_for_ever": "DeadlockError: no device can move: 2 of 2 wait",
}
SECONDS = 150  # a safety net: all take some ten, on a busy machine more


@pytest.fixture(scope="module")
def runs():
    """All at the same time, for most of it is waiting: by name, the exit code and what was said."""
    script, names = str(HERE / "real_script.py"), ("well", "dies_on_rank_1", *FAILURES)
    started = {name: Forked(SIZE, script, name, merged=True) for name in names}
    try:
        said = {name: process.communicate(timeout=SECONDS)[0] for name, process in started.items()}
    finally:
        for process in started.values():
            process.terminate()  # torchrun ends its processes, if there still are any
    return {name: (process.returncode, said[name]) for name, process in started.items()}


@pytest.mark.parametrize("step", ["agrees", "refuses", "goes_on_after_errors"])
def test_every_process_of_torchrun(runs, step):
    code, said = runs["well"]
    assert code == 0, said
    assert sorted(re.findall(rf"rank (\d) {step}$", said, re.M)) == ["0", "1"]


def test_another_number_of_processes_is_refused(runs):
    _, said = runs["well"]
    assert said.count("the program asks for 3 devices, but torchrun started 2 processes: start it with --nproc") == 2


def test_a_group_does_not_outlive_its_run(runs):
    _, said = runs["well"]
    for rank in range(SIZE):
        assert f"rank {rank} called barrier() after its run had ended" in said


def test_who_has_failed_is_named_to_those_who_wait(runs):
    _, said = runs["well"]
    call = "all_reduce(op='sum') in group (0, 1)"
    assert f"heard by 0: rank 0 waits for {call}, but rank 1 has raised OurOwnError: on purpose" in said


def test_torchrun_reports_what_a_process_raises(runs):
    code, said = runs["fails_on_rank_1"]
    assert code != 0
    cause = said[said.index("Root Cause") :]
    assert re.search(r"rank +: 1", cause)
    assert "OurOwnError: on purpose\n  raised on rank 1 of 2" in cause


@pytest.mark.parametrize("name", FAILURES)
def test_one_process_says_what_went_wrong(runs, name):
    code, said = runs[name]
    assert code != 0
    processes = said[: said.index("torch.distributed.elastic.multiprocessing.errors.ChildFailedError")]
    assert len(re.findall(rf"^[\w.]*{re.escape(FAILURES[name])}", processes, re.M)) == 1, processes
    assert processes.count("in <module>\n    launch(") == 1  # one traceback of the script, and no more


def test_torchrun_reports_who_dies(runs):
    code, said = runs["dies_on_rank_1"]
    assert code != 0
    cause = said[said.index("Root Cause") :]
    assert re.search(r"rank +: 1", cause)
    assert re.search(r"exitcode +: 7", cause)


def test_without_torchrun_the_devices_are_simulated():
    assert launch(rank_of, size=3) == [0, 1, 2]
    assert launch(rank_of) == [0, 1, 2, 3]
    assert isinstance(devices(2), Cluster)
    assert len(launch(everything, size=4, device="cpu")) == 4


def test_the_number_of_processes_is_that_of_torchrun(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert (repr(devices()), devices(6).size) == ("Torchrun(6)", 6)
    with pytest.raises(ValueError, match="asks for 4 devices, but torchrun started 6 processes"):
        Torchrun(4)
