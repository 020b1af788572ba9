"""What a program raises comes out as it is, with its rank; and the next run is unharmed."""

import threading
import traceback

import pytest
import torch

from lib.devices import Cluster
from lib.devices.engine.turns import Turns
from lib.devices.errors import Stopped


class OurOwnError(Exception):
    pass


def divides_by_its_rank(group):
    return group.all_reduce(torch.ones(1)) + 1 // group.rank


def test_the_exception_keeps_its_type_and_traceback_and_names_its_rank():
    with pytest.raises(ZeroDivisionError) as error:
        Cluster(3).run(divides_by_its_rank)
    assert error.value.__notes__ == ["raised on rank 0 of 3"]
    frames = [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]
    assert frames[-1] == "divides_by_its_rank"
    assert "1 // group.rank" in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("rank", range(4))
def test_any_rank_may_fail_while_the_others_wait(rank):
    def program(group):
        if group.rank == rank:
            raise OurOwnError("no")
        group.barrier()

    with pytest.raises(OurOwnError, match="no") as error:
        Cluster(4).run(program)
    assert error.value.__notes__ == [f"raised on rank {rank} of 4"]


def test_the_first_error_counts():
    def program(group):
        raise OurOwnError(group.rank)

    with pytest.raises(OurOwnError) as error:
        Cluster(3).run(program)
    assert error.value.args == (0,)
    assert error.value.__notes__ == ["raised on rank 0 of 3"]


def test_devices_that_had_not_begun_do_not_begin():
    begun = []

    def program(group):
        begun.append(group.rank)
        raise OurOwnError

    with pytest.raises(OurOwnError):
        Cluster(3).run(program)
    assert begun == [0]


def test_a_device_that_is_stopped_cleans_up_and_its_own_errors_are_silent():
    cleaned = []

    def program(group):
        if group.rank == 1:
            raise OurOwnError
        try:
            group.barrier()
        except Exception:  # what stops a device is no Exception: this must not catch it
            cleaned.append("caught")
        finally:
            cleaned.append(group.rank)
            raise ValueError("while cleaning up")

    with pytest.raises(OurOwnError):
        Cluster(3).run(program)
    assert cleaned == [0]


def test_a_device_that_catches_everything_is_stopped_at_its_next_verb():
    def program(group):
        if group.rank == 1:
            raise OurOwnError
        for verb in (group.barrier, lambda: group.send(torch.ones(1), 0), lambda: group.recv(2), group.barrier):
            with pytest.raises(Stopped):
                verb()
        reached.append(group.rank)

    reached = []
    with pytest.raises(OurOwnError):
        Cluster(3).run(program)
    assert reached == [0]


def test_system_exit_is_an_error_of_the_program():
    with pytest.raises(RuntimeError, match="rank 0 of 2 left the program") as error:
        Cluster(2).run(lambda group: exit(3))
    assert isinstance(error.value.__cause__, SystemExit)


def test_an_error_of_a_verb_comes_out():
    with pytest.raises(TypeError, match="complex") as error:
        Cluster(2).run(lambda group: group.all_reduce(torch.ones(2, dtype=torch.complex64), op="max"))
    assert error.value.__notes__ == ["raised on rank 0 of 2"]


def test_the_next_run_is_unharmed():
    cluster = Cluster(4)
    for rank in range(4):
        with pytest.raises(ZeroDivisionError):
            cluster.run(lambda group, bad: group.barrier() if group.rank != bad else 1 / 0, rank)
        assert cluster.run(lambda group: float(group.all_reduce(torch.ones(())))) == [4.0] * 4


def test_a_group_dies_with_its_run():
    group = Cluster(2).run(lambda group: group)[1]
    for call in (group.barrier, lambda: group.recv(src=0), lambda: group.send(torch.ones(1), dst=0)):
        with pytest.raises(RuntimeError, match=r"rank 1 called .* after its run had ended.*inside the program"):
            call()


def test_the_group_of_another_device_is_refused():
    groups = {}

    def program(group):
        groups[group.rank] = group
        group.barrier()
        groups[(group.rank + 1) % 2].all_reduce(torch.ones(1))

    with pytest.raises(RuntimeError, match=r"the group of rank 0 was used by somebody else, to call all_reduce"):
        Cluster(2).run(program)


def test_the_group_of_another_device_cannot_send_or_receive_either():
    for call in (lambda group: group.recv(src=0), lambda group: group.send(torch.ones(1), dst=0)):
        groups = []

        def program(group, call=call, groups=groups):
            groups.append(group)
            if group.rank == 1:
                call(groups[0])

        with pytest.raises(RuntimeError, match=r"the group of rank 0 was used by somebody else.*own program"):
            Cluster(2).run(program)


def test_devices_are_stopped_in_a_fixed_order_those_that_are_ready_before_those_that_wait():
    def body(rank):
        try:
            if rank in (1, 8):
                turns.wait(rank)
            elif rank in (0, 2):
                turns.step_back(rank)
            if rank == 0:
                raise OurOwnError
        except Stopped:
            stopped.append(rank)
            raise

    turns, stopped = Turns(9, body, lambda: None), []
    with pytest.raises(OurOwnError):
        turns.run()
    assert stopped == [2, 1, 8]


@pytest.mark.parametrize("program", [lambda group: None, lambda group: group.barrier()], ids=["ended", "waits"])
def test_where_the_system_has_no_thread_left_the_run_ends(monkeypatch, program):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "device 2":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Cluster(4).run(program)
