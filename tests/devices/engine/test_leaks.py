"""A program may be run again and again: no thread, no tensor and no memory stays behind."""

import gc
import threading
import weakref
from contextlib import suppress

import psutil
import pytest
import torch

from lib.devices import Cluster, DeadlockError, MismatchError


def busy(group, x):
    half = group.split(2)
    y = group.all_reduce(x) + half.all_gather(x).sum()
    group.send(y, dst=(group.rank + 1) % group.size)
    return group.recv(src=(group.rank - 1) % group.size)


def test_outputs_are_freed_without_the_garbage_collector(no_garbage_collector):
    x = torch.ones(10)
    cluster = Cluster(4)
    outputs = cluster.run(busy, x)
    watched = [weakref.ref(y) for y in outputs]
    del outputs
    assert [ref() for ref in watched] == [None] * 4


def test_what_a_program_keeps_to_itself_is_freed_without_the_garbage_collector(no_garbage_collector):
    watched = []

    def program(group):
        x = torch.ones(5, requires_grad=True)
        y = group.all_gather(x.detach())
        watched.extend([weakref.ref(x), weakref.ref(y), weakref.ref(group)])
        group.barrier()

    Cluster(3).run(program)
    assert [ref() for ref in watched] == [None] * 9


def test_a_group_that_is_returned_keeps_no_tensor(no_garbage_collector):
    watched = []

    def program(group):
        x = torch.ones(5)
        y = group.all_reduce(x)
        watched.extend([weakref.ref(x), weakref.ref(y)])
        return group

    groups = Cluster(3).run(program)
    assert [ref() for ref in watched] == [None] * 6
    assert [group.rank for group in groups] == [0, 1, 2]


def test_a_failed_run_keeps_tensors_only_as_long_as_its_exception(no_garbage_collector):
    watched = []

    def program(group):
        x = torch.ones(5)
        watched.append(weakref.ref(x))
        group.barrier()
        if group.rank == 1:
            raise ZeroDivisionError
        group.all_reduce(x)

    with suppress(ZeroDivisionError):
        Cluster(3).run(program)
    assert [ref() for ref in watched] == [None] * 3


@pytest.mark.parametrize(
    ("error", "wrong_call"),
    [
        (MismatchError, lambda group, x: group.all_reduce(x) if group.rank else group.barrier()),
        (DeadlockError, lambda group, x: group.recv(src=0)),
    ],
    ids=["mismatch", "deadlock"],
)
def test_a_run_that_the_engine_stops_keeps_no_tensor(no_garbage_collector, error, wrong_call):
    watched = []

    def program(group):
        x = torch.ones(5)
        watched.append(weakref.ref(x))
        wrong_call(group, x)

    with suppress(error):
        Cluster(2).run(program)
    assert [ref() for ref in watched if ref() is not None] == []


def test_a_hundred_runs_leave_nothing_behind():
    process = psutil.Process()
    x = torch.ones(16_000)  # 64 kB, of which a run makes about 30; short enough for one thread of OpenMP
    cluster = Cluster(4)

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    for _ in range(20):
        cluster.run(busy, x)
    threads, before, memory = threading.active_count(), tensors(), process.memory_info().rss
    for _ in range(100):
        cluster.run(busy, x)
        assert threading.active_count() <= threads  # those of other tests may have ended
    assert tensors() == before
    assert process.memory_info().rss - memory < 12e6  # were the four outputs of each run kept, it would be 25 MB


def test_failed_runs_leave_nothing_behind():
    def fails(group):
        if group.rank == 2:
            raise ZeroDivisionError
        group.barrier()

    threads = threading.active_count()
    for _ in range(50):
        with pytest.raises(ZeroDivisionError):
            Cluster(4).run(fails)
    assert threading.active_count() <= threads  # those of other tests may have ended
