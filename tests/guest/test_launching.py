"""What travels into simulated processes, and how they wait for each other."""

import inspect
import multiprocessing
import os
import re
import threading
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.elastic.agent.server import local_elastic_agent as agent

from lib import Cluster
from lib.devices.errors import DeadlockError
from lib.guest import asking
from lib.guest.command import main
from lib.guest.copies import own_copy
from lib.guest.own_time import OwnTime
from lib.guest.private_python import default_context
from lib.guest.program import guest
from lib.guest.spawning import spawning
from lib.guest.variables import variables


def test_arguments_are_copies_that_share_their_tensors():
    layer, tensor, names = torch.nn.Linear(2, 2), torch.zeros(3), ["a"]
    lock = multiprocessing.Lock()
    copy = own_copy((layer, [tensor, tensor], {"names": names}, lock, layer.weight))
    copy[1][0][0] = 5
    copy[2]["names"].append("b")
    copy[0](torch.ones(2)).sum().backward()
    assert tensor[0] == 5
    assert names == ["a"]
    assert copy[0].weight.data_ptr() == layer.weight.data_ptr()
    assert layer.weight.grad is None
    assert copy[0].weight.grad is not None
    assert copy[3] is lock


def test_devices_wait_for_each_other_at_barriers_events_and_queues():
    said, tools = [], []

    def program():
        dist.init_process_group("gloo")
        if not tools:  # made inside of the run, they give the turn away
            context = mp.get_context("spawn")
            tools.extend([context.Barrier(2), context.Event(), context.Queue()])
        barrier, event, queue = tools
        if dist.get_rank() == 0:
            assert queue.get() == "from 1"
            event.set()
        else:
            queue.put("from 1")
            event.wait()
        barrier.wait()
        said.append(dist.get_rank())

    Cluster(2).run(guest(program))
    assert sorted(said) == [0, 1]


def test_each_device_sets_its_start_method_whatever_the_caller_has_set(monkeypatch):
    monkeypatch.setattr(default_context(), "_actual_context", mp.get_context("fork"))
    said = []

    def program():
        mp.set_start_method("spawn")
        said.append(mp.get_start_method())

    Cluster(2).run(guest(program))
    assert said == ["spawn", "spawn"]
    assert mp.get_start_method() == "fork"


def test_what_nobody_puts_is_a_deadlock_at_once():
    bystander = mp.get_context("spawn").Process(target=time.sleep, args=(60,))
    bystander.start()  # it was there before the run, and knows nothing of it
    begin = time.monotonic()
    with pytest.raises(DeadlockError, match=r"1 of 1 wait(.|\n)*0  Queue.get\(\) +<lambda>, line \d+: Cluster"):
        Cluster(1).run(guest(lambda: mp.get_context("spawn").Queue().get()))
    assert time.monotonic() - begin < asking.PATIENCE / 2
    bystander.kill()
    bystander.join()


def holds_a_lock_at_a_barrier(lock):
    dist.init_process_group("gloo")
    lock.acquire()
    dist.barrier()


def test_who_waits_for_a_lock_and_who_waits_for_that_one_are_both_named():
    def program():
        if not locks:
            locks.append(mp.get_context("spawn").Lock())
        holds_a_lock_at_a_barrier(locks[0])

    locks = []
    words = r"0  barrier\(\) in group \(0, 1, 2\) +holds.* line \d+: dist(.|\n)*2  a lock of .*: lock.acquire\(\)"
    with pytest.raises(DeadlockError, match=words):
        Cluster(3).run(guest(program))


class Heavy:
    """A word that takes a while to go into a queue: who has put it may be gone before."""

    def __init__(self, word="late"):
        self.word = word

    def __reduce__(self):
        time.sleep(0.18)
        return str, (self.word,)


def from_a_thread(queue, event, other):
    threading.Thread(target=lambda: time.sleep(0.35) or queue.put(Heavy()), daemon=True).start()
    return queue.get()


def from_who_waits_no_longer(queue, event, other):
    """Rank 1 gives up after a while, and then does what rank 0 waits for."""
    if int(os.environ["RANK"]) == 0:
        return queue.get()
    event.wait(timeout=0.35)
    return queue.put(Heavy()) or "late"


def from_who_sleeps(queue, event, other):
    if int(os.environ["RANK"]) == 0:
        return queue.get()
    for _ in range(4):
        time.sleep(0.09)
    return queue.put(Heavy()) or "late"


def within_the_limit(queue, event, other):
    if int(os.environ["RANK"]) == 0:
        return queue.get(timeout=30)
    event.wait(timeout=0.05)
    return queue.put("late") or "late"


def from_who_has_it_from_another(queue, event, other):
    rank = int(os.environ["RANK"])
    if rank == 2:
        return queue.put(Heavy()) or "late"
    if rank == 1:
        return other.put(Heavy(queue.get())) or "late"
    return other.get()


LATE = [(1, from_a_thread), (2, from_who_waits_no_longer), (2, from_who_sleeps), (2, within_the_limit),
        (3, from_who_has_it_from_another)]  # fmt: skip


@pytest.mark.parametrize(("size", "program"), LATE)
def test_who_is_late_is_waited_for(size, program, monkeypatch):
    monkeypatch.setattr(asking, "AT_ONCE", 0.3)

    def main():
        if not tools:
            tools.extend([context.Queue(), context.Event(), context.Queue()])
        return program(*tools)

    tools, context = [], mp.get_context("spawn")
    assert Cluster(size).run(replace(guest(main), outside=(OwnTime(),))) == ["late"] * size


def test_nobody_is_stuck_before_all_have_asked_again(monkeypatch):
    """What one has got, another may get by it, who asks behind those that still get nothing."""
    monkeypatch.setattr(asking, "AT_ONCE", -1.0)  # time does not help
    boxes, some = {0: [], 1: [], 2: []}, asking.Asking()

    def program():
        rank = int(os.environ["RANK"])
        if rank == 2:
            boxes[1].append("from 2")
        found = some.until(lambda: boxes[rank].pop() if boxes[rank] else None, "a box")
        boxes[{1: 0, 0: 2, 2: 1}[rank]].append(f"from {rank}")
        return found

    assert Cluster(3).run(guest(program)) == ["from 1", "from 2", "from 0"]


def test_beside_a_real_process_devices_are_patient(monkeypatch):
    monkeypatch.setattr(asking, "PATIENCE", 0.4)
    monkeypatch.setattr(asking, "AT_ONCE", 0.0)

    def program():
        context = mp.get_context("fork")
        process = context.Process(target=time.sleep, args=(30,), daemon=True)
        process.start()
        begin.append(time.monotonic())
        try:
            context.Queue().get()
        finally:
            process.terminate()
            process.join()

    begin = []
    with pytest.raises(DeadlockError):
        Cluster(1).run(guest(program))
    assert time.monotonic() - begin[0] >= 0.4


def test_what_nobody_waits_for_runs_at_the_end():
    seen = []

    def outer():
        mp.spawn(lambda rank: seen.append(rank), nprocs=2)
        mp.get_context("fork").Process(target=lambda: seen.append("left")).start()

    Cluster(1).run(guest(outer))
    assert seen == [0, 1, "left"]


def test_what_was_started_runs_once_however_often_it_is_waited_for():
    seen = []

    def outer():
        context = mp.spawn(lambda rank: seen.append(rank), nprocs=2, join=False)
        process = mp.get_context("fork").Process(target=lambda: seen.append("left"))
        process.start()
        for _ in range(2):
            assert context.join()
            process.join()
        assert process.exitcode == 0
        assert not process.is_alive()
        mp.spawn(lambda rank: seen.append("alone"), nprocs=1)

    Cluster(1).run(guest(outer))
    assert seen == [0, 1, "left", "alone"]


RANK = None


def train(rank, size, out):
    global RANK
    RANK = rank
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:23456", rank=rank, world_size=size)
    x = torch.ones(1)
    dist.all_reduce(x)
    out[rank] = x.item() + RANK
    if rank == size - 1 and size == 3:
        raise SystemExit(5)


def test_without_any_run_around_it():
    out = torch.zeros(3)
    with spawning():
        mp.spawn(train, args=(2, out), nprocs=2)
        assert out.tolist() == [2, 3, 0]
        with pytest.raises(mp.ProcessExitedException) as ended:
            mp.spawn(train, args=(3, out), nprocs=3)
        assert (ended.value.error_index, ended.value.exit_code) == (2, 5)
        with pytest.raises(ValueError, match="nprocs=0.* starts no process.*--gpus 4"):
            mp.spawn(train, nprocs=torch.cuda.device_count() * 0)
    assert RANK is None


OF_THE_MAIN_MODULE = """
import torch.distributed as dist
import torch.multiprocessing as mp
from launcher import launch

RANK = None


class Plan:
    rank = None


def train(rank, plan):
    global RANK
    assert (RANK, Plan.rank, type(plan)) == (None, None, Plan)
    RANK = Plan.rank = rank
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:23456", rank=rank, world_size=3)
    dist.barrier()
    assert (RANK, plan.rank) == (rank, rank)


if __name__ == "__main__":
    mp.spawn(launch, args=(train, Plan()), nprocs=3)
    assert RANK is Plan.rank is None
    print("done")
"""


def test_functions_and_classes_among_the_arguments_are_each_processs_own(tmp_path, capsys):
    """Started by a function of another module, as many a library does."""
    (tmp_path / "launcher.py").write_text("def launch(rank, function, *args):\n    function(rank, *args)\n")
    (tmp_path / "train.py").write_text(OF_THE_MAIN_MODULE)
    assert main([str(tmp_path / "train.py")]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == "done\n"


def test_all_variables_of_torchrun():
    set_there = set(re.findall(r'"([A-Z_]+)": ', inspect.getsource(agent.LocalElasticAgent._start_workers)))
    of_5 = variables(5, 8, nodes=2)
    assert set(of_5) == set_there | {"LOCAL_RANK"}
    told = ("RANK", "LOCAL_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE")
    assert [of_5[name] for name in told] == ["5", "1", "1", "2", "4"]
