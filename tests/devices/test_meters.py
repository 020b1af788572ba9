"""Reading the meters."""

import pytest
import torch

from lib.devices import Cluster, Count, Meters
from lib.devices.traffic import Traffic


def measured():
    def program(group):
        group.all_reduce(torch.zeros(500))
        group.all_reduce(torch.zeros(500))
        group.barrier()
        if group.rank == 0:
            group.send(torch.zeros(3), dst=1)
        else:
            group.recv(src=0)

    cluster = Cluster(2)
    cluster.run(program)
    return cluster.meters


def test_count_sums_over_devices_and_verbs():
    meters = measured()
    assert meters.count(0, "all_reduce") == Count(2, 4, 4000, 4, 4000)
    assert meters.count(verb="all_reduce") == Count(4, 8, 8000, 8, 8000)
    assert meters.count(0) == Count(4, 6, 4012, 5, 4000)
    assert meters.count(1) == Count(4, 5, 4000, 6, 4012)
    assert meters.count() == Count(8, 11, 8012, 11, 8012)
    assert meters.count(0, "gather") == Count()


def test_verbs_and_rows_are_in_order():
    meters = measured()
    assert meters.verbs() == ["all_reduce", "barrier", "recv", "send"]
    assert [(rank, verb) for rank, verb, _ in meters.rows()] == [
        (0, "all_reduce"),
        (0, "barrier"),
        (0, "send"),
        (1, "all_reduce"),
        (1, "barrier"),
        (1, "recv"),
    ]
    assert meters.rows()[0][2] == Count(2, 4, 4000, 4, 4000)


def test_the_table():
    assert str(measured()).splitlines() == [
        "                             sent         received",
        "rank        verb  calls  messages  bytes  messages  bytes",
        "   0  all_reduce      2         4  4,000         4  4,000",
        "   0     barrier      1         1      0         1      0",
        "   0        send      1         1     12         0      0",
        "   1  all_reduce      2         4  4,000         4  4,000",
        "   1     barrier      1         1      0         1      0",
        "   1        recv      1         0      0         1     12",
    ]
    assert repr(measured()) == str(measured())


def test_charge_adds():
    meters = Meters(2)
    meters.charge(1, "send", Traffic(1, 10, 2, 20))
    meters.charge(1, "send", Traffic(3, 30, 4, 40), calls=5)
    assert meters.count(1, "send") == Count(6, 4, 40, 6, 60)
    assert meters.count(0) == Count()


def test_an_unused_meter_is_empty_and_can_be_printed():
    meters = Cluster(3).meters
    assert meters.count() == Count()
    assert meters.verbs() == meters.rows() == []
    assert str(meters).splitlines()[-1] == "rank  verb  calls  messages  bytes  messages  bytes"


def test_counts_add():
    assert Count(1, 2, 3, 4, 5) + Count(10, 20, 30, 40, 50) == Count(11, 22, 33, 44, 55)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_does_not_exist_is_refused(rank):
    with pytest.raises(ValueError, match=rf"no rank {rank} among 2 devices: ranks are 0 to 1"):
        measured().count(rank)


def test_each_run_has_meters_of_its_own_and_a_failed_run_keeps_them():
    cluster = Cluster(2)
    cluster.run(lambda group: group.barrier())
    first = cluster.meters

    def fails(group):
        group.all_reduce(torch.zeros(1))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cluster.run(fails)
    assert first.verbs() == ["barrier"]
    assert cluster.meters.verbs() == ["all_reduce"]
    assert cluster.meters.count().calls == 2
