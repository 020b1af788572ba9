"""What goes wrong in real processes: it comes out with its rank and its cause, nothing hangs, nobody is left behind."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from oracles import real_errors, real_verbs

from lib.devices import Cluster, DeadlockError, Group, MismatchError
from lib.real.channel import naming_a_lost_connection
from lib.real.process import Place, joined, own_gpu
from lib.real.processes import Processes
from lib.real.torchrun import launch

SECONDS = 90  # much longer than anything here takes, much shorter than the programs that wait for ever
DEADLOCKS = ["all_receive_first", "one_ends_early", "one_receives_instead", "handle_of_one_alone"]
DISAGREEMENTS = [name for name in vars(real_errors) if name.startswith("other_")]
OF_THREE = ["other_shape", "other_shape_than_the_second", "other_in_a_small_group"]
ALIKE = [*DISAGREEMENTS, "nothing_to_broadcast", "never_received", "never_waited_for", "waited_for_twice"]


@pytest.fixture(autouse=True)
def in_time():
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SECONDS


def error_of(devices, program, *args):
    with pytest.raises(Exception) as error:  # noqa: PT011, B017  which one is what the tests ask
        devices.run(program, *args)
    return error.value


def assert_alike(simulated, real):
    assert (type(simulated), str(simulated)) == (type(real), str(real))


@pytest.mark.parametrize("name", ALIKE)
def test_the_error_is_that_of_the_simulation(name):
    program, size = getattr(real_errors, name), 3 if name in OF_THREE else 2
    assert_alike(error_of(Cluster(size), program), error_of(Processes(size), program))


def test_disagreements_name_both_calls_and_their_lines():
    error = error_of(Processes(2), real_errors.other_beside)
    assert isinstance(error, MismatchError)
    for rank, op in enumerate(["min", "max"]):
        assert f"rank {rank}: all_reduce(op='{op}') of float32 (2,), in other_beside, line" in str(error)


@pytest.fixture(scope="module", autouse=True)
def slow_runs():
    """Deadlocks are noticed after some seconds: all of them at the same time, beside the other tests."""
    with ThreadPoolExecutor() as threads:
        runs = {name: threads.submit(error_of, Processes(3), getattr(real_errors, name)) for name in DEADLOCKS}
        runs["is_late"] = threads.submit(Processes(2).run, real_errors.is_late)
        yield runs


@pytest.mark.parametrize(
    ("size", "error", "args"),
    [(4, real_errors.OurOwnError, ("no",)), (2, ZeroDivisionError, ()), (2, OSError, (5, "no"))],
)
def test_what_a_program_raises_is_raised_with_its_rank_and_traceback(size, error, args):
    found = error_of(Processes(size), real_errors.raises, error, *args)
    assert (type(found), found.args) == (error, args)
    rank, place = found.__notes__
    assert rank == f"raised on rank {size - 1} of {size}"
    assert "in raises\n    raise error(*args)" in place


def test_an_error_that_cannot_be_pickled_says_the_same_words():
    found = error_of(Processes(2), real_errors.raises, real_errors.StubbornError, 1, 2)
    assert (type(found), str(found)) == (RuntimeError, "StubbornError: 1 and 2")
    assert "raised on rank 1 of 2" in found.__notes__


def test_the_cause_comes_out_not_that_the_others_lost_it():
    found = error_of(Processes(3), real_errors.raises_beside_a_handle)
    assert type(found) is real_errors.OurOwnError


@pytest.mark.parametrize(
    ("number", "how"),
    [(3, "with exit code 3"), (0, "with exit code 0"), (-9, "by SIGKILL (out of memory?)"), (-11, "by SIGSEGV")],
)
def test_who_dies_is_named(number, how):
    found = error_of(Processes(2), real_errors.dies, number)
    assert type(found) is RuntimeError
    assert str(found) == f"rank 1 of 2 real processes has died {how}"


def test_workers_of_a_data_loader():
    expected = [2 * (i + i + 1) for i in range(0, 8, 2)]
    assert Processes(2).run(real_errors.loads_with_workers) == [expected] * 2
    assert Cluster(2).run(real_errors.loads_with_workers) == [expected] * 2


def test_who_dies_beside_its_workers_is_named_at_once():
    start = time.monotonic()
    found = error_of(Processes(2), real_errors.dies_beside_workers)
    assert str(found) == "rank 1 of 2 real processes has died by SIGKILL (out of memory?)"
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("code", [0, 3, None, "done"])
def test_who_leaves_by_sys_exit_is_named(code):
    found = error_of(Processes(2), real_errors.leaves, code)
    assert type(found) is RuntimeError
    assert f"rank 1 of 2 left the program by sys.exit({code!r})" in str(found)


def wait_until(there):
    end = time.monotonic() + SECONDS
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


def written(folder):
    return [text for file in folder.iterdir() if (text := file.read_text())]


def wait_until_gone(folder, size):
    """Waits until the processes that wrote their ids there have ended."""
    ids = written(folder)
    assert len(ids) == size
    wait_until(lambda: not any(Path(f"/proc/{number}").exists() for number in ids))


needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="counts processes in /proc")


@needs_proc
def test_nobody_is_left_behind(tmp_path):
    assert isinstance(error_of(Processes(3), real_errors.ignores_signals, tmp_path), real_errors.OurOwnError)
    wait_until_gone(tmp_path, 3)


@needs_proc
def test_nobody_is_left_behind_by_a_parent_that_is_killed(tmp_path):
    folder, said = tmp_path / "ids", tmp_path / "said"
    folder.mkdir()
    parent = multiprocessing.get_context("forkserver").Process(target=real_errors.is_a_parent, args=(folder, said))
    parent.start()
    wait_until(lambda: len(written(folder)) == 2)
    parent.kill()
    parent.join(SECONDS)
    wait_until_gone(folder, 2)
    assert said.read_text() == ""


@needs_proc
def test_nobody_is_left_behind_by_a_parent_that_is_interrupted(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without

    def press_stop():
        wait_until(lambda: len(written(tmp_path)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_stop).start()
    with pytest.raises(KeyboardInterrupt):
        Processes(2).run(real_errors.waits_for_ever, tmp_path)
    signal.signal(signal.SIGINT, before)
    wait_until_gone(tmp_path, 2)


def test_a_run_ends_its_threads():
    before = set(threading.enumerate())
    with joined(dist.HashStore(), Place(0, 1, 0, 1)) as exchange:
        group = Group(exchange, 0, [0])
        assert group.all_reduce(torch.ones(2), async_op=True).wait().tolist() == [1, 1]
        assert len(set(threading.enumerate()) - before) == 2  # to send, and for the collective
    wait_until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.parametrize("text", ["[gloo] Connection closed by peer", "gloo::EnforceNotMet"])
def test_a_lost_connection_is_named(text):
    with (
        pytest.raises(ConnectionError, match=r"rank 4 lost the others in recv\(src=1\) in group \(3, 4\)"),
        naming_a_lost_connection(4, "recv(src=1)", (3, 4)),
    ):
        raise RuntimeError(text)


@pytest.mark.parametrize("error", [RuntimeError("no memory"), DeadlockError("gloo"), MismatchError("gloo"), KeyError()])
def test_what_is_no_lost_connection_is_not_called_one(error):
    with pytest.raises(type(error)) as raised, naming_a_lost_connection(4, "recv(src=1)", (3, 4)):
        raise error
    assert raised.value is error


def test_what_the_processes_print_is_printed_here(capfd):
    Processes(3).run(real_errors.prints)
    printed = capfd.readouterr().out
    assert [printed.count(f"hello from {rank}\n") for rank in range(3)] == [1, 1, 1]
    assert [printed.count(f"unfinished {rank}") for rank in range(3)] == [1, 1, 1]


def says(kind, words, devices, program, *args):
    error = error_of(devices, program, *args)
    assert isinstance(error, kind)
    for word in words:
        assert word in str(error)


def test_a_program_that_no_file_holds_is_refused():
    def local(group):
        return group.rank

    for program in (local, lambda group: 1, partial(local)):
        says(TypeError, ["Processes.run cannot send the program", "%%writefile"], Processes(2), program)


def test_a_program_of_a_notebook_is_refused(monkeypatch):
    # To other processes a cell is what this module is: they pickle it by a name that leads nowhere.
    notebook = types.ModuleType("notebook")
    exec("def cell(group): return 1", vars(notebook))
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    says(TypeError, ["cannot find the program", "'notebook'", "%%writefile"], Processes(2), notebook.cell)


def test_arguments_and_results_that_cannot_travel_are_named():
    says(TypeError, ["cannot send an argument of first_argument"], Processes(2), real_errors.first_argument, sys)
    says(TypeError, ["rank 1 returned a lock that cannot be sent"], Processes(2), real_errors.returns_a_lock)


def test_bad_calls_are_refused_before_anything_starts():
    for size in (0, -1, 2.0, True, "2"):
        with pytest.raises(ValueError, match=f"Processes\\(size={size!r}\\)"):
            Processes(size)
    says(TypeError, ["needs a program"], Processes(2), 3)
    says(TypeError, ["cannot be called as handles(group, ...)"], Processes(2), real_verbs.handles, 1)


def test_tensors_that_cannot_travel_are_refused():
    says(ValueError, ["all_reduce(op='sum')", "30 dims", "Convert"], Processes(2), real_errors.too_many_dims)
    says(TypeError, ["sparse", "dense tensor", "to_dense"], Processes(2), real_errors.sparse)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none; this machine has one")
def test_cuda_asked_for_and_absent():
    with torch.device("cuda"), pytest.raises(RuntimeError, match=r"'cuda' was asked for.* sees 0 GPU.*device='cpu'"):
        Processes(2).run(real_verbs.modes)
    with pytest.raises(RuntimeError, match=r"launch\(device='cuda'\): this PyTorch sees no GPU.*device='cpu'"):
        launch(real_verbs.modes, device="cuda")


def test_a_gpu_for_each_or_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    assert own_gpu(2, 4) == torch.device("cuda", 2)
    assert own_gpu(2, 5) is None
    with torch.device("cuda"), pytest.raises(RuntimeError, match="by 5 process.* sees 4 GPU"):
        own_gpu(2, 5)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    assert own_gpu(2, 4) is None
    with torch.device("cuda"), pytest.raises(RuntimeError, match="built without NCCL"):
        own_gpu(2, 4)


def test_a_pytorch_without_gloo_says_so(monkeypatch):
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    with (
        pytest.raises(RuntimeError, match=r"gloo, which this PyTorch was built without.*Cluster"),
        joined(dist.HashStore(), Place(0, 1, 0, 1)),
    ):
        pass


@pytest.mark.parametrize("name", DEADLOCKS)
def test_a_deadlock_shows_the_table_of_the_simulation(slow_runs, name):
    simulated = error_of(Cluster(3), getattr(real_errors, name))
    assert isinstance(simulated, DeadlockError)
    assert_alike(simulated, slow_runs[name].result(SECONDS))


def test_who_is_late_is_waited_for(slow_runs):
    assert slow_runs["is_late"].result(SECONDS) == [2.0, 2.0]
