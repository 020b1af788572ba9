"""Asynchronous collectives: the device goes on, and wait() brings the result."""

from itertools import permutations

import pytest
import torch
from devices.inputs import random_tensor
from devices.messages import says

from lib.devices import Cluster, DeadlockError, Hardware, Link, MismatchError

# One FLOP a second, memory for free, a second per message and a second per byte: times are whole numbers.
TOY = Hardware("Toy", 1.0, float("inf"), 1.0, Link(1.0, 1.0))
ALL_REDUCE = 2 * 1 + 4  # of one float32 on two devices: two messages, and half of the four bytes twice; see test_clock


def work(seconds):
    torch.ones(1, seconds // 2) @ torch.ones(seconds // 2, 1)  # 2mnk FLOPs


def ends(cluster):
    return [max(event.end for event in cluster.trace.events if event.rank == rank) for rank in range(cluster.size)]


@pytest.mark.parametrize(
    "verb", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "scatter", "gather"]
)
@pytest.mark.parametrize("hardware", [None, TOY])
def test_the_result_is_that_of_the_synchronous_call(verb, hardware):
    tensors = [random_tensor((5, 3), torch.float32, "contiguous", torch.Generator().manual_seed(r)) for r in range(4)]

    def program(group):
        x = tensors[group.rank]
        return getattr(group, verb)(x), getattr(group, verb)(x, async_op=True).wait()

    cluster = Cluster(4, hardware)
    pairs = cluster.run(program)
    assert all(a is b is None or torch.equal(a, b) for a, b in pairs)
    assert pairs[0][0] is not None
    assert cluster.meters.count(0, verb).calls == 2


@pytest.mark.parametrize("compute", [2, 4, 6, 8, 20])
def test_compute_hides_the_collective(compute):
    def program(group):
        handle = group.all_reduce(torch.ones(1), async_op=True)
        work(compute)
        return handle.wait()

    cluster = Cluster(2, TOY)
    assert cluster.run(program) == [2, 2]
    assert ends(cluster) == [max(compute, ALL_REDUCE)] * 2
    assert cluster.trace.total(kind="waiting") == 0  # what is exposed is communication: it has its own event
    for rank in range(2):
        assert cluster.trace.total(rank, "compute") == compute
        assert cluster.trace.total(rank, "communication") == ALL_REDUCE


@pytest.mark.parametrize("compute", [2, 6, 20])
def test_without_async_op_nothing_is_hidden(compute):
    def program(group):
        group.all_reduce(torch.ones(1))
        work(compute)

    cluster = Cluster(2, TOY)
    cluster.run(program)
    assert ends(cluster) == [compute + ALL_REDUCE] * 2


def test_only_the_exposed_part_delays_what_comes_after_the_wait():
    def program(group):
        handle = group.all_reduce(torch.ones(1), async_op=True)
        work(4)
        handle.wait()
        work(10)

    cluster = Cluster(2, TOY)
    cluster.run(program)
    second = [event for event in cluster.trace.events if event.kind == "compute"][-1]
    assert (second.start, second.end) == (ALL_REDUCE, ALL_REDUCE + 10)


def test_a_collective_begins_when_the_last_has_started_it_not_when_the_first_waits():
    def program(group):
        work(2 + 10 * group.rank)
        handle = group.all_reduce(torch.ones(1), async_op=True)
        work(2)
        handle.wait()

    cluster = Cluster(2, TOY)
    cluster.run(program)
    events = cluster.trace.events
    assert {(e.start, e.end) for e in events if e.kind == "communication"} == {(12, 12 + ALL_REDUCE)}
    waits = [(e.rank, e.start, e.end) for e in events if e.kind == "waiting"]
    assert waits == [(0, 4, 12)]  # until the other was ready; the rest of the exposed time is communication
    assert ends(cluster) == [12 + ALL_REDUCE] * 2


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_handles_may_be_waited_for_in_any_order(order):
    def program(group):
        handles = [group.all_reduce(torch.tensor([float(10**i)]), async_op=True) for i in range(3)]
        results = {i: int(handles[i].wait()) for i in order}
        return [results[i] for i in range(3)]

    cluster = Cluster(2, TOY)
    assert cluster.run(program) == [[2, 20, 200]] * 2
    starts = [(e.start, e.end) for e in cluster.trace.events if e.kind == "communication" and e.rank == 0]
    assert starts == [(0, 6), (6, 12), (12, 18)], "a link carries one collective at a time, in the order of the calls"
    assert ends(cluster) == [18, 18]


@pytest.mark.parametrize("hardware", [None, TOY])
def test_devices_may_wait_in_different_orders(hardware):
    def program(group):
        handles = [group.all_reduce(torch.tensor([i + 1]), async_op=True) for i in range(4)]
        order = range(4) if group.rank % 2 else reversed(range(4))
        return sorted(int(handles[i].wait()) for i in order)

    assert Cluster(4, hardware).run(program) == [[4, 8, 12, 16]] * 4


def test_a_synchronous_call_may_overtake_the_wait_and_not_the_collective():
    def program(group):
        handle = group.all_reduce(torch.ones(1), async_op=True)
        group.barrier()
        return int(handle.wait())

    cluster = Cluster(2, TOY)
    assert cluster.run(program) == [2, 2]
    events = [(e.name, e.start, e.end) for e in cluster.trace.events if e.rank == 0 and e.kind == "communication"]
    assert events == [("all_reduce", 0, ALL_REDUCE), ("barrier", ALL_REDUCE, ALL_REDUCE + 1)]


def test_each_device_has_a_result_of_its_own():
    def program(group):
        y = group.all_reduce(torch.ones(1), async_op=True).wait()
        y += group.rank
        group.barrier()
        return float(y)

    assert Cluster(3).run(program) == [3, 4, 5]


def test_waiting_twice_is_refused_and_says_what_to_do():
    def program(group):
        handle = group.all_reduce(torch.ones(1), async_op=True)
        handle.wait()
        handle.wait()

    with says(RuntimeError, "twice", "all_reduce(op='sum')", "(0, 1)", "keep the result"):
        Cluster(2).run(program)


@pytest.mark.parametrize(
    "verb", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "scatter", "gather"]
)
def test_a_dropped_handle_is_named_with_its_rank_and_line(verb):
    def program(group):
        handle = getattr(group, verb)(torch.ones(2), async_op=True)
        if group.rank != 2:
            handle.wait()

    says_where = "program, line ", "handle = getattr(group, verb)(torch.ones(2), async_op=True)"
    with says(MismatchError, "rank 2 in", *says_where, f"Handle({verb}(", "not yet waited for", "Call wait()"):
        Cluster(3).run(program)


def test_a_handle_that_nobody_keeps_is_found_too():
    with says(MismatchError, "rank 0", "all_reduce", "wait()"):
        Cluster(2).run(lambda group: group.all_reduce(torch.ones(1), async_op=True) and None)


def test_the_programs_own_error_comes_before_its_dropped_handles():
    def program(group):
        group.all_reduce(torch.ones(1), async_op=True)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Cluster(2).run(program)


def test_devices_that_disagree_are_found_when_the_second_calls():
    def program(group):
        group.all_reduce(torch.ones(2 + group.rank), async_op=True).wait()

    with says(MismatchError, "same shape", "rank 0: all_reduce", "(2,)", "rank 1: all_reduce", "(3,)"):
        Cluster(2).run(program)


def test_a_mismatch_names_the_line_that_started_the_call():
    def program(group):
        handle = group.all_reduce(torch.ones(2 + group.rank), async_op=True)
        if group.rank == 0:
            group.recv(1)
        handle.wait()

    with pytest.raises(MismatchError) as error:
        Cluster(2).run(program)
    assert str(error.value).count("handle = group.all_reduce(") == 2


def test_different_verbs_in_flight_do_not_match():
    def program(group):
        verb = group.all_gather if group.rank else group.all_reduce
        verb(torch.ones(2), async_op=True).wait()

    with says(MismatchError, "same verbs in the same order", "all_reduce", "all_gather"):
        Cluster(2).run(program)


def test_an_asynchronous_call_matches_a_synchronous_one():
    def program(group):
        y = group.all_reduce(torch.ones(1), async_op=group.rank == 0)
        return float(y.wait() if group.rank == 0 else y)

    assert Cluster(2).run(program) == [2, 2]


def test_a_deadlock_when_one_device_never_calls():
    def program(group):
        if group.rank != 1:
            handle = group.all_reduce(torch.ones(1), async_op=True)
            handle.wait()

    with says(DeadlockError, "2 of 3", "all_reduce(op='sum')", "handle.wait()", "1  (has ended)", "ended too early"):
        Cluster(3).run(program)


def test_a_call_that_nobody_joins_and_nobody_waits_for_is_no_secret():
    def program(group):
        if group.rank == 0:
            group.all_reduce(torch.ones(1), async_op=True)

    with says(MismatchError, "rank 0", "all_reduce"):
        Cluster(2).run(program)


def test_a_handle_is_dead_after_its_run():
    kept = []
    with says(MismatchError, "not yet waited for"):
        Cluster(2).run(lambda group: kept.append(group.all_reduce(torch.ones(1), async_op=True)))
    for handle in kept:
        with says(RuntimeError, "all_reduce", "after its run had ended"):
            handle.wait()


def test_a_handle_shows_what_it_stands_for():
    def program(group):
        handle = group.all_gather(torch.ones(1), async_op=True)
        before = repr(handle)
        handle.wait()
        return before, repr(handle)

    call = "all_gather(dim=0) in group (0,)"
    assert Cluster(1).run(program) == [(f"Handle({call}, not yet waited for)", f"Handle({call}, waited for)")]
