"""Faults: each does what it says, to whom and when it says, and what follows is named or measured."""

import pytest
import torch

from lib.devices import Cluster, DeadlockError
from lib.parallel.recovery.faults import Dies, Flips, Late, Loses, flipped, with_faults


def sums(group, steps=4):
    return [group.all_reduce(torch.full((3,), float(group.rank + step))) for step in range(steps)]


def ring(group):
    group.send(torch.tensor([float(group.rank)]), (group.rank + 1) % group.size)
    return group.recv((group.rank - 1) % group.size).item()


def test_without_a_fault_nothing_changes():
    for plain, faulty in zip(Cluster(3).run(sums), Cluster(3).run(with_faults(sums)), strict=True):
        assert all(map(torch.equal, plain, faulty))
    assert Cluster(3).run(ring) == Cluster(3).run(with_faults(ring)) == [2.0, 0.0, 1.0]


@pytest.mark.parametrize("call", [0, 2])
def test_the_others_wait_for_a_device_that_died_and_it_is_named(call):
    cluster = Cluster(3)
    with pytest.raises(DeadlockError, match=r"2 of 3 wait for something") as found:
        cluster.run(with_faults(sums, Dies(1, call)))
    lines = str(found.value).splitlines()
    assert lines[3].split() == ["1", "(has", "ended)"]
    assert "all_reduce(op='sum')" in lines[2]
    assert "def " not in lines[2]
    assert cluster.meters.count(0, "all_reduce").calls == call


def test_a_group_without_the_dead_device_goes_on():
    def program(group):
        half = group.split(2)
        return half.all_reduce(torch.ones(1)).item() + half.all_reduce(torch.ones(1)).item()

    with pytest.raises(DeadlockError, match="1 of 4 wait"):
        Cluster(4).run(with_faults(program, Dies(3, 1)))


def test_a_lost_message_is_waited_for_and_a_collective_cannot_be_lost():
    with pytest.raises(DeadlockError, match=r"recv\(src=1, tag=0\)"):
        Cluster(3).run(with_faults(ring, Loses(1, 0)))
    with pytest.raises(ValueError, match="this call is all_reduce, and only a send can be lost"):
        Cluster(3).run(with_faults(sums, Loses(1, 0)))


def test_a_flipped_bit_reaches_everyone_and_nobody_complains():
    plain, found = Cluster(3).run(sums), Cluster(3).run(with_faults(sums, Flips(2, 1, element=1, bit=30)))
    for rank in range(3):
        for step in range(4):
            differs = plain[rank][step] != found[rank][step]
            assert differs.tolist() == [False, step == 1, False]
    assert all(torch.equal(found[0][step], found[1][step]) for step in range(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_one_bit_is_another(dtype):
    x = torch.arange(6).view(2, 3).to(dtype)
    sign = flipped(x, 4, 8 * dtype.itemsize - 1)
    assert (sign != x).nonzero().tolist() == [[1, 1]]
    assert sign[1, 1] == (-x[1, 1] if dtype.is_floating_point else x[1, 1] - 2**63)
    assert torch.equal(flipped(sign, 4, 8 * dtype.itemsize - 1), x)
    assert flipped(torch.arange(4), 2, 3).tolist() == [0, 1, 10, 3]
    for element, bit in ((6, 0), (0, 8 * dtype.itemsize), (-1, 0)):
        with pytest.raises(ValueError, match=f"no bit {bit} of element {element} in 6 elements"):
            flipped(x, element, bit)


def test_everyone_waits_for_a_slow_device():
    times = {}
    for seconds in (0.0, 0.25):
        cluster = Cluster(3, hardware="H100")
        cluster.run(with_faults(sums, Late(1, 2, seconds=seconds)))
        times[seconds] = cluster.trace.seconds
    assert times[0.25] - times[0.0] == pytest.approx(0.5)  # two of its four calls
    assert {event.rank for event in cluster.trace.events if event.kind == "waiting"} == {0, 2}  # and not the slow one
    with pytest.raises(ValueError, match="without a virtual clock nobody can be late"):
        Cluster(3).run(with_faults(sums, Late(1, 2, seconds=1)))


def test_a_fault_that_could_not_happen_is_refused():
    with pytest.raises(ValueError, match=r"Dies\(rank=3, call=0\): there is no such device among the 3"):
        Cluster(3).run(with_faults(sums, Dies(3, 0)))
    with pytest.raises(ValueError, match="this call is recv, and the device brings nothing to it"):
        Cluster(3).run(with_faults(ring, Flips(1, 1)))
