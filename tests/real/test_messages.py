"""send and recv: mailboxes, tags, and copies."""

import torch

from lib.devices import Cluster


def test_messages_arrive_in_the_order_they_were_sent():
    def program(group):
        if group.rank == 0:
            for number in range(5):
                group.send(torch.tensor(number), dst=1)
            return None
        return [int(group.recv(src=0)) for _ in range(5)]

    assert Cluster(2).run(program)[1] == [0, 1, 2, 3, 4]


def test_tags_are_mailboxes_of_their_own():
    def program(group):
        if group.rank == 0:
            group.send(torch.tensor(1), dst=1, tag=7)
            group.send(torch.tensor(2), dst=1)
            return None
        return int(group.recv(src=0)), int(group.recv(src=0, tag=7))

    assert Cluster(2).run(program)[1] == (2, 1)


def test_senders_are_told_apart():
    def program(group):
        if group.rank:
            group.send(torch.tensor(group.rank), dst=0)
            return None
        return [int(group.recv(src=src)) for src in (3, 1, 2)]

    assert Cluster(4).run(program)[0] == [3, 1, 2]


def test_send_does_not_wait_and_recv_does():
    events = []

    def program(group):
        if group.rank == 0:
            events.append("0 waits")
            group.recv(src=1)
            events.append("0 received")
        else:
            events.append("1 sends")
            group.send(torch.ones(1), dst=0)
            events.append("1 goes on")

    Cluster(2).run(program)
    assert events == ["0 waits", "1 sends", "1 goes on", "0 received"]


def test_what_the_sender_does_afterwards_is_its_own_affair():
    def program(group):
        x = torch.ones(3)
        if group.rank == 0:
            group.send(x, dst=1)
            x.zero_()
            return None
        return group.recv(src=0).tolist()

    assert Cluster(2).run(program)[1] == [1, 1, 1]


def test_everyone_may_send_to_everyone_and_to_itself():
    def program(group):
        for dst in range(group.size):
            group.send(torch.tensor(10 * group.rank + dst), dst=dst)
        return [int(group.recv(src=src)) for src in range(group.size)]

    assert Cluster(4).run(program) == [[10 * src + rank for src in range(4)] for rank in range(4)]


def test_a_letter_can_wake_a_device_that_waits_while_others_are_in_a_collective():
    def program(group):
        pair = group.split([[0, 1], [2, 3]])
        if group.rank == 2:
            return float(pair.recv(src=1))
        if group.rank == 3:
            pair.send(torch.tensor(5.0), dst=0)
            return None
        return float(pair.all_reduce(torch.tensor(1.0)))

    assert Cluster(4).run(program) == [2.0, 2.0, 5.0, None]
