"""The trace: what it holds, sums, prints and writes; also when the run failed."""

import json
from math import inf

import pytest
import torch
from devices.messages import says

from lib.devices import (
    Cluster,
    DeadlockError,
    Event,
    Hardware,
    Link,
    MismatchError,
    Trace,
)

TOY = Hardware("Toy", 1.0, inf, 1.0, Link(1.0, 1.0))  # a FLOP, a message, a byte: a second each


def work(seconds):
    torch.empty(1, seconds // 2) @ torch.empty(seconds // 2, 1)


def program(group):
    work(10 * (group.rank + 1))
    handle = group.all_reduce(torch.empty(4), async_op=True)
    work(6)
    y = handle.wait()
    if group.rank == 0:
        group.send(y, 1)
    elif group.rank == 1:
        group.recv(0)
    group.barrier()


def trace_of(size, program=program):
    cluster = Cluster(size, TOY)
    cluster.run(program)
    return cluster.trace


def made_by_hand():
    trace = Trace(3)
    trace.events += [
        Event(0, "compute", "mm", 0.0, 2e-6, flops=100, moved=8),
        Event(1, "compute", "mm", 0.0, 1e-6, flops=50),
        Event(1, "waiting", "barrier", 1e-6, 2e-6),
        Event(0, "communication", "barrier", 2e-6, 4e-6, sent=16),
        Event(1, "communication", "barrier", 2e-6, 4e-6),
    ]
    return trace


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_device_does_one_thing_at_a_time_but_for_overlapped_communication(size):
    trace = trace_of(size)
    for rank in range(size):
        mine = [event for event in trace.events if event.rank == rank]
        on_device = [event for event in mine if event.kind != "communication"]
        on_link = [event for event in mine if event.kind == "communication"]
        for track in (on_device, on_link):
            assert all(before.end <= after.start for before, after in zip(track, track[1:], strict=False))
        assert all(event.end > event.start >= 0 for event in mine)


def test_every_second_of_a_device_is_accounted_for():
    trace = trace_of(3)
    for rank in range(3):
        spans = sorted((event.start, event.end) for event in trace.events if event.rank == rank)
        now = 0
        for start, end in spans:
            assert start <= now, f"rank {rank} has a hole from {now} to {start}"
            now = max(now, end)
        assert now == trace.seconds, "the barrier at the end brings all to one time"


def test_the_sums():
    trace = made_by_hand()
    assert trace.seconds == 4e-6
    assert trace.total() == pytest.approx(8e-6)
    assert trace.total(0) == pytest.approx(4e-6)
    assert trace.total(kind="compute") == pytest.approx(3e-6)
    assert trace.total(1, "waiting") == pytest.approx(1e-6)
    assert trace.total(2) == trace.total(0, "waiting") == 0
    assert [trace.flops(rank) for rank in range(3)] == [100, 50, 0]
    assert trace.events[0].seconds == 2e-6


def test_the_sums_of_a_run():
    trace = trace_of(2)
    all_reduce, send, barrier = 2 + 16, 1 + 16, 1
    assert trace.seconds == 20 + all_reduce + send + barrier
    assert trace.flops(1) == 26
    assert trace.total(1, "compute") == 26
    assert trace.total(0, "communication") == all_reduce + send + barrier
    assert trace.total(1, "communication") == all_reduce + send + barrier
    # for the collective; then in the barrier, while its message is on the way
    assert trace.total(0, "waiting") == (20 - 10 - 6) + send
    assert trace.total(1, "waiting") == 0


def test_what_overlaps_counts_once():
    trace = Trace(1)
    for start, end in (0, 4), (1, 2), (3, 6), (8, 9):
        trace.events.append(Event(0, "communication", "send", float(start), float(end)))
    assert trace.total(0, "communication") == trace.total() == 7


def test_the_table():
    assert made_by_hand().table().splitlines() == [
        "rank  compute us  communication us  waiting us  end us  busy",
        "   0         2.0               2.0         0.0     4.0   50%",
        "   1         1.0               2.0         1.0     4.0   25%",
        "   2         0.0               0.0         0.0     0.0    0%",
    ]
    assert str(made_by_hand()) == repr(made_by_hand()) == made_by_hand().table()


def test_large_numbers_stay_readable_and_aligned():
    trace = Trace(2)
    trace.events.append(Event(0, "compute", "mm", 0.0, 1.5))
    header, *rows = trace.table().splitlines()
    assert "1,500,000.0" in rows[0]
    assert {len(row) for row in rows} == {len(header)}


def test_an_empty_trace_has_a_table_too():
    trace = Cluster(2, TOY).trace
    assert (trace.seconds, trace.total(), trace.flops(0)) == (0, 0, 0)
    assert trace.table().splitlines()[1].split() == ["0", "0.0", "0.0", "0.0", "0.0", "0%"]


# ---- failed runs ----


def test_a_failed_run_keeps_its_trace_up_to_the_failure():
    def fails(group):
        work(4)
        group.barrier()
        if group.rank == 1:
            raise KeyError("mine")
        work(8)
        group.barrier()

    cluster = Cluster(2, TOY)
    with pytest.raises(KeyError):
        cluster.run(fails)
    assert [(e.rank, e.name, e.start, e.end) for e in cluster.trace.events if e.rank == 1] == [
        (1, "mm", 0, 4),
        (1, "barrier", 4, 5),
    ]
    assert cluster.trace.total(kind="communication") == 2
    assert cluster.trace.table()


def test_the_trace_of_a_deadlock_ends_where_it_stuck():
    def fails(group):
        group.barrier()
        work(4)
        group.recv(1 - group.rank)

    cluster = Cluster(2, TOY)
    with pytest.raises(DeadlockError):
        cluster.run(fails)
    assert cluster.trace.seconds == 5
    assert cluster.trace.total(kind="waiting") == 0


def test_the_trace_of_a_mismatch_does_not_hold_the_collective_that_never_was():
    cluster = Cluster(2, TOY)
    with says(MismatchError, "same shape"):
        cluster.run(lambda group: (work(4), group.all_reduce(torch.empty(group.rank + 1))))
    assert [event.kind for event in cluster.trace.events] == ["compute", "compute"]


def test_a_failed_run_leaves_nothing_for_the_next():
    cluster = Cluster(2, TOY)
    with pytest.raises(KeyError):
        cluster.run(lambda group: (work(4), {}["mine"]))
    cluster.run(lambda group: group.barrier())
    assert cluster.trace.seconds == 1


# ---- Chrome's format ----


@pytest.fixture
def chrome(tmp_path):
    def write(trace):
        trace.to_chrome(tmp_path / "trace.json")
        return json.loads((tmp_path / "trace.json").read_text("utf-8"))["traceEvents"]

    return write


def test_chrome_gets_every_event_in_microseconds(chrome):
    trace = trace_of(3)
    rows = [row for row in chrome(trace) if row["ph"] == "X"]
    assert len(rows) == len(trace.events)
    for row, event in zip(rows, trace.events, strict=True):
        assert (row["name"], row["cat"], row["pid"]) == (event.name, event.kind, event.rank)
        assert (row["ts"], row["dur"]) == pytest.approx((event.start * 1e6, (event.end - event.start) * 1e6))


def test_chrome_shows_one_process_per_device_with_a_track_for_communication(chrome):
    rows = chrome(trace_of(3))
    names = {row["pid"]: row["args"]["name"] for row in rows if row["name"] == "process_name"}
    assert names == {0: "device 0", 1: "device 1", 2: "device 2"}
    tracks = {(row["pid"], row["tid"]): row["args"]["name"] for row in rows if row["name"] == "thread_name"}
    assert tracks == {(r, t): name for r in range(3) for t, name in enumerate(("compute", "communication"))}
    for row in rows:
        if row["ph"] == "X":
            on = tracks[row["pid"], row["tid"]]
            assert on == ("communication" if row["cat"] == "communication" else "compute")


def test_chrome_gets_the_counts(chrome):
    details = [row["args"] for row in chrome(made_by_hand()) if row["ph"] == "X"]
    assert details == [{"flops": 100, "moved": 8}, {"flops": 50}, {}, {"sent": 16}, {}]


def test_chrome_gets_valid_json_from_an_empty_trace(chrome):
    assert {row["ph"] for row in chrome(Trace(2))} == {"M"}


def test_the_path_may_be_a_string(tmp_path):
    made_by_hand().to_chrome(str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["displayTimeUnit"] == "ns"
