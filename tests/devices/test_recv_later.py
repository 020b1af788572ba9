"""recv(async_op=True), and sends that wait for their receiver."""

import pytest
import torch
from devices.messages import says

from lib.devices import Cluster, DeadlockError, Hardware, Link, MismatchError

# A message of n bytes takes 1 + n seconds; an addition of n numbers of 4 bytes moves 12 n bytes, at 1 per second.
TOY = Hardware("toy", flops=1e30, memory_bandwidth=1.0, memory=1e9, inside=Link(1.0, 1.0))
X = torch.zeros(1)  # 4 bytes: 5 seconds to send, 12 to add


def shift(group):
    """All ask first, then all send: right in either kind of cluster."""
    handle = group.recv((group.rank - 1) % group.size, async_op=True)
    group.send(torch.tensor([float(group.rank)]), (group.rank + 1) % group.size)
    return handle.wait().item()


@pytest.mark.parametrize("rendezvous", [False, True])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_what_was_asked_for_before_it_was_sent(size, rendezvous):
    cluster = Cluster(size, rendezvous=rendezvous)
    assert cluster.run(shift) == [float((rank - 1) % size) for rank in range(size)]
    assert cluster.meters.count(0, "recv").bytes_received == 4


@pytest.mark.parametrize("rendezvous", [False, True])
def test_messages_go_to_the_recvs_in_the_order_of_the_calls(rendezvous):
    def program(group):
        if group.rank == 0:
            for n in range(4):
                group.send(torch.tensor(n), 1)
            return None
        first, second = group.recv(0, async_op=True), group.recv(0, async_op=True)
        third = int(group.recv(0))
        fourth = group.recv(0, async_op=True)
        return int(second.wait()), int(fourth.wait()), int(first.wait()), third

    assert Cluster(2, rendezvous=rendezvous).run(program)[1] == (1, 3, 0, 2)


def test_a_handle_that_nobody_waits_for_is_named():
    def program(group):
        group.send(X, 1 - group.rank)
        group.recv(1 - group.rank, async_op=True)

    with says(MismatchError, "started Handle(recv(src=", "program, line", "Call wait() on it"):
        Cluster(2).run(program)


def test_waiting_for_what_nobody_sends_is_a_deadlock():
    with says(DeadlockError, "recv(src=1, tag=0)", "every recv needs its send"):
        Cluster(2).run(lambda group: group.rank or group.recv(1, async_op=True).wait())


def seconds(program, **options):
    cluster = Cluster(2, hardware=TOY, **options)
    cluster.run(program)
    return cluster.trace


def test_a_message_comes_in_while_the_device_computes():
    def program(group, later):
        if group.rank == 0:
            group.send(X, 1)
            return
        handle = group.recv(0, async_op=later)
        torch.add(torch.ones(1), 1)  # 4 to make, 8 to add
        if later:
            handle.wait()

    def with_and_without():
        return [seconds(lambda group, later=later: program(group, later)).seconds for later in (True, False)]

    assert with_and_without() == [12, 5 + 12]


def test_with_rendezvous_a_send_begins_when_its_receiver_asks_and_lasts_until_the_bytes_have_left():
    def program(group):
        if group.rank == 0:
            group.send(X, 1)
            return group.now()
        torch.add(torch.ones(1), 1)
        group.recv(0)
        return group.now()

    cluster = Cluster(2, hardware=TOY, rendezvous=True)
    assert cluster.run(program) == [17, 17]
    waits = [(e.rank, e.name, e.start, e.end) for e in cluster.trace.events if e.kind == "waiting"]
    assert waits == [(0, "send to 1", 0, 12)]
    assert Cluster(2, hardware=TOY).run(program) == [0, 12], "without it, the message is on its way at once"


def test_a_recv_that_was_asked_for_lets_the_sender_go():
    def program(group):
        if group.rank == 0:
            group.send(X, 1)
            return group.now()
        handle = group.recv(0, async_op=True)
        torch.add(torch.ones(1), 1)
        handle.wait()
        return group.now()

    assert Cluster(2, hardware=TOY, rendezvous=True).run(program) == [5, 12]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_all_who_send_first_wait_for_ever(size):
    def program(group):
        group.send(X, (group.rank + 1) % group.size)
        group.recv((group.rank - 1) % group.size)

    Cluster(size).run(program)
    fragments = [f"send(dst={(rank + 1) % size}, tag=0)" for rank in range(size)]
    with says(DeadlockError, *fragments, "a send waits until its receiver takes the message", "dist.irecv"):
        Cluster(size, rendezvous=True).run(program)


def test_a_message_nobody_asks_for_is_found_by_its_sender():
    with says(DeadlockError, "send(dst=1, tag=3)", "(has ended)"):
        Cluster(2, rendezvous=True).run(lambda group: group.rank or group.send(X, 1, tag=3))


def test_the_cluster_says_which_kind_it_is():
    assert repr(Cluster(2, rendezvous=True)) == "Cluster(2, rendezvous=True)"
