"""One program on every device; one device at a time; results in rank order."""

import threading

import pytest
import torch

from lib.devices import Cluster
from lib.devices.engine.turns import Turns
from lib.devices.errors import DeadlockError


def test_results_come_in_rank_order_even_when_devices_end_in_another():
    def program(group):
        for rank in reversed(range(group.size)):
            if group.rank == rank and rank + 1 < group.size:
                group.recv(src=rank + 1)
            if group.rank == rank and rank > 0:
                group.send(torch.ones(1), dst=rank - 1)
        ended.append(group.rank)
        return group.rank, group.size, group.ranks

    ended = []
    assert Cluster(5).run(program) == [(r, 5, (0, 1, 2, 3, 4)) for r in range(5)]
    assert ended == [4, 3, 2, 1, 0]


def test_arguments_reach_every_device_as_they_are():
    x = torch.ones(2)

    def program(group, y, *, factor):
        return y is x, group.rank * factor

    assert Cluster(3).run(program, x, factor=10) == [(True, 0), (True, 10), (True, 20)]


def test_a_program_may_be_anything_that_can_be_called():
    class Program:
        def __call__(self, group):
            return group.rank

    assert Cluster(2).run(Program()) == [0, 1]
    assert Cluster(2).run(repr)[1] == "Group(rank=1, size=2, ranks=(0, 1))"
    assert Cluster(2).run(type) == [type(group) for group in Cluster(2).run(lambda group: group)]


def test_a_device_keeps_the_turn_until_it_waits():
    events = []

    def program(group):
        events.append(f"{group.rank} starts")
        for _ in range(1000):
            threading.Event().wait(0)  # gives every other thread the chance to run
        events.append(f"{group.rank} comes")
        group.barrier()
        events.append(f"{group.rank} goes on")

    Cluster(3).run(program)
    assert events == [
        *("0 starts", "0 comes", "1 starts", "1 comes", "2 starts", "2 comes"),
        *("2 goes on", "0 goes on", "1 goes on"),
    ]


def test_only_one_device_runs_at_a_time():
    inside, most = set(), []

    def program(group):
        for _ in range(5):
            inside.add(group.rank)
            threading.Event().wait(0.0005)
            most.append(len(inside))
            inside.remove(group.rank)
            group.all_reduce(torch.ones(1))

    Cluster(6).run(program)
    assert set(most) == {1}


def test_the_order_of_events_is_the_same_in_every_run():
    def program(group, events):
        half = group.split(2)
        for step in range(4):
            events.append((group.rank, step))
            if group.rank % 3 == step % 3:
                group.send(torch.ones(1), dst=(group.rank + 1) % group.size)
            if (group.rank - 1) % group.size % 3 == step % 3:
                group.recv(src=(group.rank - 1) % group.size)
            half.barrier()

    runs = []
    for _ in range(5):
        runs.append([])
        Cluster(6).run(program, runs[-1])
    assert all(events == runs[0] for events in runs)
    assert len(runs[0]) == 24


def test_devices_are_threads_with_a_name():
    """And one that no exception reaches, within C say, does not keep Python from ending."""
    threads = Cluster(2).run(lambda group: threading.current_thread())
    assert [thread.name for thread in threads] == ["device 0", "device 1"]
    assert all(thread.daemon for thread in threads)


def test_a_run_is_over_when_its_last_thread_is(monkeypatch):
    live, gone = Turns._live, []

    def live_longer(turns, rank):
        live(turns, rank)
        threading.Event().wait(0.02)
        gone.append(rank)

    monkeypatch.setattr(Turns, "_live", live_longer)
    Cluster(3).run(lambda group: group.barrier())
    assert sorted(gone) == [0, 1, 2]


def test_a_cluster_of_hundreds_of_devices():
    outputs = Cluster(300).run(lambda group: int(group.all_reduce(torch.tensor(group.rank))))
    assert outputs == [299 * 300 // 2] * 300


def test_a_run_inside_of_a_run():
    def program(group):
        inner = Cluster(3).run(lambda small: int(small.all_reduce(torch.tensor(group.rank))))
        return inner, int(group.all_reduce(torch.tensor(1)))

    assert Cluster(2).run(program) == [([0, 0, 0], 2), ([3, 3, 3], 2)]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_size_and_repr(size):
    assert Cluster(size).size == size
    assert repr(Cluster(size)) == f"Cluster({size})"


def test_a_device_that_asks_again_and_again_lets_the_others_go_first():
    said = []

    def program(group):
        while group.rank == 0 and "done" not in said:
            said.append("asks")
            group.place.step_back(group.me, "ask()")
        said.append("done")

    Cluster(2).run(program)
    assert said == ["asks", "done", "done"]
    Cluster(1).run(lambda group: group.place.step_back(group.me, "ask()"))  # nobody else: it goes on at once


def test_a_device_stands_still_until_another_says_go_on():
    said = []

    def program(group, told=True):
        if group.rank == 0:
            group.place.stand_still(0, "a word()", group.ranks)
        elif told:
            said.append("go on")
            group.place.go_on(0)
        said.append(group.rank)

    Cluster(2).run(program)
    assert said == ["go on", 1, 0]
    with pytest.raises(DeadlockError, match=r"0 +a word\(\) in group \(0, 1\)"):
        Cluster(2).run(program, told=False)


def test_only_when_nobody_is_ready_it_is_asked_whether_anybody_can_move():
    def stuck():
        asked.append(turns.in_line)
        turns.ready(0)

    def body(rank):
        if rank == 0:
            turns.wait(rank)
        else:
            turns.step_back(rank)

    asked = []
    turns = Turns(3, body, stuck)
    turns.run()
    assert asked == [()]


def test_threads_of_devices_that_need_not_begin_are_not_started():
    def body(rank):
        raise LookupError

    turns = Turns(3, body, lambda: None)
    with pytest.raises(LookupError):
        turns.run()
    assert [thread.ident is not None for thread in turns._threads] == [True, False, False]
