"""The timeline by the wall clock."""

import threading

import pytest
import torch
from real.timed_programs import draws_and_holds_its_group, one_sleeps

from book import draw_timeline
from lib.devices import Cluster, Hardware, Link, Mesh
from lib.real import stopwatch
from lib.real.processes import Processes
from lib.real.stopwatch import time_run

# One FLOP a second, memory for free, a second per message and a second per byte: times are whole numbers.
TOY = Hardware("Toy", 1.0, float("inf"), 1.0, Link(1.0, 1.0))


def work(seconds):
    torch.ones(1, seconds // 2) @ torch.ones(seconds // 2, 1)  # 2mnk FLOPs


@pytest.fixture
def virtual(monkeypatch):
    """The wall clock shows the virtual time of the device that looks at it."""
    here = threading.local()

    def look():
        return here.clock.now[here.rank]

    class Watch(stopwatch.Stopwatch):
        def __init__(self, exchange):
            here.clock, here.rank = exchange.clock, here_rank(exchange)
            super().__init__(exchange)

    def here_rank(exchange):
        return next(r for r in range(exchange.size) if exchange.turns.idents[r] == threading.get_ident())

    monkeypatch.setattr(stopwatch, "Stopwatch", Watch)
    monkeypatch.setattr(stopwatch, "perf_counter", look)


def rows(events, zero=0.0):
    """Without compute, whose kernels the stopwatch does not see; sorted, from `zero` on."""
    found = [(e.rank, e.kind, e.name, e.start - zero, e.end - zero) for e in events if e.kind != "compute"]
    return sorted(row for row in found if row[3] >= 0)


def on_a_mesh(group):
    mesh = Mesh(group, dp=2, tp=2)
    for step in range(3):
        work(2 + 2 * group.rank)
        mesh.tp.all_reduce(torch.ones(4))
        work(10 - 2 * group.rank)
        mesh.dp.all_gather(torch.ones(2 + group.rank % 2, 1))
        work(2 + 20 * (step == group.rank))
        group.broadcast(torch.ones(4), src=1)
        group.barrier()


def test_synchronous_verbs_take_the_times_of_the_virtual_clock(virtual):
    cluster = Cluster(4, TOY)
    _, trace = time_run(cluster, on_a_mesh)
    barrier = max(event.end for event in cluster.trace.events) - trace.seconds  # where the second run began
    assert len(trace.events) > 50
    assert rows(trace.events) == rows(cluster.trace.events, barrier)
    for rank in range(4):
        assert trace.total(rank) == trace.total(rank, "compute") + trace.total(rank, "waiting") + trace.total(
            rank, "communication"
        )
        twice = cluster.trace.total(rank, "compute")
        assert trace.total(rank, "compute") == twice / 2 > 0


def spans(trace, rank):
    return [(e.kind, e.name, e.start, e.end) for e in trace.events if e.rank == rank and e.end > e.start]


def test_an_asynchronous_verb_lasts_beside_the_work_until_it_is_waited_for(virtual):
    def program(group):
        work(4 if group.rank == 0 else 10)
        handle = group.all_reduce(torch.ones(1), async_op=True)
        work(20 if group.rank == 0 else 2)
        handle.wait()
        work(2)

    _, trace = time_run(Cluster(2, TOY), program)
    # It is complete at 10 and takes 6: two messages, and half of the four bytes twice.
    assert sorted(spans(trace, 0)) == [
        ("communication", "all_reduce", 10, 24), ("compute", "compute", 0, 24), ("compute", "compute", 24, 26)
    ]  # fmt: skip
    assert sorted(spans(trace, 1)) == [
        ("communication", "all_reduce", 10, 16), ("compute", "compute", 0, 12), ("compute", "compute", 16, 18)
    ]  # fmt: skip


def test_one_who_waits_for_a_late_device_of_an_asynchronous_verb(virtual):
    def program(group):
        work(4 if group.rank == 0 else 10)
        return group.all_reduce(torch.ones(1), async_op=True).wait()

    outputs, trace = time_run(Cluster(2, TOY), program)
    assert outputs == [2, 2]
    assert spans(trace, 0) == [
        ("compute", "compute", 0, 4), ("waiting", "all_reduce", 4, 10), ("communication", "all_reduce", 10, 16)
    ]  # fmt: skip


def test_groups_of_the_same_devices_are_not_confused(virtual):
    def program(group):
        groups = [group.split(1), group.split(1)]
        handles = []
        for one in groups if group.rank == 0 else reversed(groups):
            work(10)
            handles.append(one.all_reduce(torch.ones(1), async_op=True))
        for handle in handles:
            handle.wait()

    _, trace = time_run(Cluster(2, TOY), program)
    # Each is complete when the device that calls it second has come.
    assert {event.start for event in trace.events if event.kind == "communication"} == {20}


def test_messages(virtual):
    def program(group):
        if group.rank == 0:
            work(6)
            group.send(torch.ones(1), 1)
            work(2)
            group.send(torch.ones(1), 1)
        else:
            group.recv(0)
            work(20)
            group.recv(0)

    _, trace = time_run(Cluster(2, TOY), program)
    assert spans(trace, 0) == [("compute", "compute", 0, 6), ("compute", "compute", 6, 8)]  # sends take no time here
    # The first is sent at 6 and takes 5; when the second is asked for, it is there.
    assert spans(trace, 1) == [
        ("waiting", "recv from 0", 0, 6), ("communication", "recv from 0", 6, 11), ("compute", "compute", 11, 31)
    ]  # fmt: skip


def test_messages_of_sub_groups_name_the_ranks_of_the_cluster(virtual):
    def program(group):
        pair = Mesh(group, dp=2, tp=2).dp
        if pair.rank == 0:
            pair.send(torch.ones(1), 1)
        else:
            pair.recv(0)

    _, trace = time_run(Cluster(4, TOY), program)
    assert [spans(trace, rank) for rank in range(4)] == [
        [], [], [("communication", "recv from 0", 0, 5)], [("communication", "recv from 1", 0, 5)]
    ]  # fmt: skip


def test_a_send_is_communication_while_the_program_hands_it_over(monkeypatch):
    def program(group):
        alone = group.split(2)
        alone.send(torch.ones(1), 0)
        alone.recv(0)

    ticks = iter(range(100))
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: next(ticks))
    _, trace = time_run(Cluster(2), program)
    for rank in range(2):
        names = [("compute", "compute"), ("communication", f"send to {rank}"), ("compute", "compute")]
        names += [("communication", f"recv from {rank}"), ("compute", "compute")]
        found = spans(trace, rank)
        assert [span[:2] for span in found] == names
        assert [span[2:] for span in found] == [(found[0][2] + i, found[0][2] + i + 1) for i in range(5)]


def test_a_group_of_one_has_nobody_to_talk_to(virtual):
    def program(group):
        work(4)
        group.all_reduce(torch.ones(1))
        group.all_reduce(torch.ones(1), async_op=True).wait()
        work(2)

    _, trace = time_run(Cluster(1, TOY), program)
    assert spans(trace, 0) == [("compute", "compute", 0, 6)]


def test_devices_that_read_different_clocks_are_refused(virtual, monkeypatch):
    right = stopwatch.perf_counter

    class Ahead(stopwatch.Stopwatch):
        def __init__(self, exchange):
            super().__init__(exchange)
            stopwatch.perf_counter = lambda: right() + 1000 * (threading.current_thread().name == late)

    late = None

    def program(group):
        nonlocal late
        if group.rank == 1:
            late = threading.current_thread().name
        work(2)
        group.all_reduce(torch.ones(1))

    monkeypatch.setattr(stopwatch, "Stopwatch", Ahead)
    with pytest.raises(ValueError, match="rank 0 left all_reduce 994 seconds before another.*one machine"):
        time_run(Cluster(2, TOY), program)


def test_the_run_is_that_of_the_program_twice_on_one_random_stream():
    torch.manual_seed(3)
    plain, cluster = Cluster(3), Cluster(3)
    expected = plain.run(draws_and_holds_its_group)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    found, trace = time_run(cluster, draws_and_holds_its_group)
    assert torch.equal(torch.get_rng_state(), after)
    for (drawn, total, _), (drawn_2, total_2, _) in zip(expected, found, strict=True):
        assert torch.equal(drawn, drawn_2)
        assert torch.equal(total, total_2)
    assert trace.size == 3
    once, twice = (meters.count(0, "all_reduce").bytes_sent for meters in (plain.meters, cluster.meters))
    assert twice == 2 * once
    assert cluster.meters.count(0, "barrier").calls == 1


def test_arguments_reach_the_program():
    found, _ = time_run(Cluster(2), lambda group, x, y: (group.rank, x, y), 1, y=2)
    assert found == [(0, 1, 2), (1, 1, 2)]


def test_real_processes():
    _, trace = time_run(Processes(2), one_sleeps, 0.2)
    first, last = ({kind: trace.total(rank, kind) for kind in ("compute", "waiting")} for rank in range(2))
    assert first["waiting"] > 0.1  # for the one that sleeps
    assert first["compute"] >= 0.2
    assert last["compute"] >= 0.2
    assert last["waiting"] < 0.1
    assert trace.seconds >= 0.4
    assert min(event.start for event in trace.events) == 0
    assert draw_timeline(trace).svg().count('data-kind="waiting"') == 1


def test_what_holds_its_group_comes_home_from_real_processes():
    torch.manual_seed(3)
    found, _ = time_run(Processes(2), draws_and_holds_its_group)
    torch.manual_seed(3)
    expected = Cluster(2).run(draws_and_holds_its_group)
    for (drawn, total, layer), (drawn_2, total_2, layer_2) in zip(expected, found, strict=True):
        assert torch.equal(drawn, drawn_2)
        assert torch.equal(total, total_2)
        assert torch.equal(layer.weight, layer_2.weight)
        assert layer_2.group.rank == layer.group.rank
        with pytest.raises(RuntimeError, match="after its run had ended"):
            layer_2.group.all_reduce(torch.ones(1))
