"""Groups that lie in several nodes: rings with a network card for each member, and bytes that stay inside."""

from dataclasses import replace

import pytest
import torch

from lib.devices import Cluster, Hardware, Link
from lib.devices.bandwidth import bus_bandwidth

# Inside a node 1 + n seconds for n bytes; over the network 100 + 10 n.
TOY = Hardware("toy", 1e30, 1e30, 1e9, inside=Link(1.0, 1.0), between=Link(100.0, 0.1), per_node=4)
GIB = 2**30


def seconds(size, program, hardware=TOY):
    cluster = Cluster(size, hardware=hardware)
    cluster.run(program)
    return cluster.trace.seconds


def all_reduce(group, length=GIB, dtype=torch.uint8):
    return group.all_reduce(torch.empty(length, dtype=dtype, device="meta"))


def test_a_measured_all_reduce_over_four_nodes():
    """32 B200: 1 GiB was measured at 362 GB/s of bus bandwidth, 5.75 ms (facts/allreduce_sweep_b200.csv)."""
    ours = seconds(32, all_reduce, "B200")
    measured = 2 * 31 / 32 * GIB / 361.99e9
    assert measured == pytest.approx(5.75e-3, rel=1e-3)
    assert ours == pytest.approx(5.5e-3, rel=0.01)
    eight_cards = 2 * 31 / 32 * GIB / (8 * 50e9)
    assert ours == pytest.approx(eight_cards + 2 * 3 * 14e-6 + 2 * 28 * 3.4e-6, rel=1e-12)


@pytest.mark.parametrize(("size", "cards", "near", "far"), [(8, 4, 6, 1), (16, 4, 12, 3), (4, 4, 3, 0)])
def test_a_ring_uses_a_card_for_each_member_of_a_node_and_pays_each_hop_for_its_link(size, cards, near, far):
    bytes_each = 2 * (size - 1) / size * 1600
    pace = bytes_each * 10 / cards if far else bytes_each
    expected = 2 * (near * 1 + far * 100) + pace
    assert seconds(size, lambda group: all_reduce(group, 1600)) == pytest.approx(expected, rel=1e-12)


def test_one_member_in_each_node_has_the_network_alone():
    def program(group):
        all_reduce(group.split([[0, 4], [1, 5], [2, 6], [3, 7]]), 100)

    assert seconds(8, program) == 2 * 100 + 100 * 10  # all four groups at once, each with its own cards


def test_the_order_of_the_ranks_in_a_group_does_not_matter():
    def program(group, order):
        return group.split([order]).all_reduce(torch.empty(800, dtype=torch.uint8, device="meta"))

    orders = [0, 1, 2, 3, 4, 5, 6, 7], [0, 4, 1, 5, 2, 6, 3, 7]
    assert len({seconds(8, lambda group, order=order: program(group, order)) for order in orders}) == 1


def test_a_fast_network_leaves_the_pace_to_the_links_inside():
    quick = replace(TOY, between=Link(0.0, 1e9), inside=Link(0.0, 1.0))
    assert seconds(8, lambda group: all_reduce(group, 800), quick) == pytest.approx(2 * 7 / 8 * 800)


def test_a_broadcast_and_a_reduce_go_over_the_network_once_for_each_further_node():
    x = torch.empty(400, dtype=torch.uint8, device="meta")
    for verb in (lambda group: group.broadcast(x), lambda group: group.reduce(x)):
        assert seconds(8, verb) == 6 * 1 + 100 + 400 * 10 / 4


def test_bytes_inside_a_node_do_not_ride_the_slow_link():
    x = torch.empty(80, dtype=torch.uint8, device="meta")
    inside = [[20 if i // 4 == j // 4 else 0 for j in range(8)] for i in range(8)]
    # Messages to the other node are sent, and empty: 4 of them, beside 3 inside of 20 bytes each.
    assert seconds(8, lambda group: group.all_to_all(x, sizes=inside)) == max(4 * 100, 3 * 1 + 3 * 20)
    assert seconds(8, lambda group: group.all_to_all(x)) == 4 * 100 + 4 * 10 * 10


def test_scatter_and_gather_use_both_links_of_the_one_device():
    x = torch.empty(80, dtype=torch.uint8, device="meta")
    assert seconds(8, lambda group: group.scatter(x)) == 4 * 100 + 4 * 10 * 10
    assert seconds(8, lambda group: group.gather(x[:10], dst=7)) == 4 * 100 + 4 * 10 * 10


def test_a_barrier_pays_the_slowest_link_of_each_round():
    assert seconds(8, lambda group: group.barrier()) == 3 * 100
    assert seconds(4, lambda group: group.barrier()) == 2


def test_a_message_inside_a_node_does_not_queue_behind_one_on_the_network():
    def program(group):
        x = torch.empty(10, dtype=torch.uint8, device="meta")
        if group.rank == 0:
            group.send(x, 4)
            group.send(x, 1)
        elif group.rank in (1, 4):
            group.recv(0)
        return group.now()

    now = Cluster(8, hardware=TOY).run(program)
    assert (now[1], now[4]) == (1 + 10, 100 + 100)


def test_a_collective_that_needs_a_later_one_first_gets_its_link():
    """Rank 1 comes to the first collective only after the second: nobody may wait for the link for ever."""

    def program(group):
        pair = group.split([[0, 1]])
        x = torch.ones(1)
        if group.rank == 1:
            handle = group.all_reduce(x, async_op=True)
            total = handle.wait()
            return total + pair.all_reduce(x)
        first = pair.all_reduce(x, async_op=True) if group.rank == 0 else None
        total = group.all_reduce(x)
        return total if first is None else total + first.wait()

    assert [y.item() for y in Cluster(3, hardware=TOY).run(program)] == [5, 5, 3]


def test_small_messages_reach_what_was_measured():
    size = int(58e6)
    time = seconds(8, lambda group: all_reduce(group, size), replace(Hardware.preset("H100 measured"), launch=0.0))
    assert bus_bandwidth("all_reduce", size, time, 8) == pytest.approx(150e9, rel=1e-6)
    assert seconds(8, lambda group: all_reduce(group, size), "H100") < time / 2


def test_calibrated_presets_stand_beside_the_published_ones():
    a100, h100 = Hardware.preset("A100 measured"), Hardware.preset("H100 measured")
    assert (a100.efficiency, a100.inside.bandwidth, a100.flops) == (0.68, 235e9, Hardware.preset("A100").flops)
    assert (h100.efficiency, h100.inside.bandwidth, h100.launch) == (0.59, 165e9, 40e-6)


def test_small_kernels_show_the_launch_floor_and_large_ones_hide_it():
    slow_host = Hardware("toy", 1e30, 1.0, 1e9, inside=Link(1.0, 1.0), launch=40.0)

    def program(group, bytes_each):
        for _ in range(5):
            torch.empty(bytes_each, dtype=torch.uint8, device="meta").fill_(0)

    small = Cluster(1, hardware=slow_host)
    small.run(program, 2)
    fill = small.trace.events[1].seconds
    assert small.trace.seconds == 5 * 40 + fill
    assert small.trace.total(0, "waiting") == 40 + 4 * (40 - fill)
    large = Cluster(1, hardware=slow_host)
    large.run(program, 400)
    assert large.trace.seconds == 40 + 5 * large.trace.events[1].seconds, "the host runs ahead"


@pytest.mark.parametrize("rendezvous", [False, True])
def test_messages_are_issued_like_kernels(rendezvous):
    """The host takes 40 s for each call, a message 1 s and a byte 1 s: the calls are what takes the time."""
    slow_host = Hardware("toy", 1e30, 1.0, 1e9, inside=Link(1.0, 1.0), launch=40.0)

    def program(group, x):
        for _ in range(2):
            if group.rank == 0:
                group.send(x, 1)
            else:
                group.recv(0)

    two = Cluster(2, hardware=slow_host, rendezvous=rendezvous)
    two.run(program, torch.ones(2, dtype=torch.uint8))
    begins = [event.start for event in two.trace.events if event.name.startswith("send")]
    assert begins == [40, 80]
    assert two.trace.seconds == 80 + 1 + 2
