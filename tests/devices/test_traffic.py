"""The meters charge to the byte what the algorithm, carried out hop by hop, moves. For uneven sizes too."""

import pytest
import torch
from devices.inputs import SIZES, Case, cases
from devices.ring import (
    Wire,
    chain_broadcast,
    chain_reduce,
    pairwise,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
    rounds_of_barrier,
)
from hypothesis import given
from hypothesis import strategies as st

from lib.devices import Cluster

NUMBERS = [torch.float64, torch.float32, torch.float16, torch.int64]
RANK = st.integers(0, 5)


def metered(case: Case, verb: str, **arguments):
    """What the verb gives, and per device: messages and bytes sent, messages and bytes received."""
    cluster = Cluster(case.size)
    outputs = cluster.run(lambda group: getattr(group, verb)(case.tensors[group.rank], **arguments))
    rows = []
    for rank in range(case.size):
        count = cluster.meters.count(rank, verb)
        assert count.calls == 1
        rows.append((count.messages_sent, count.bytes_sent, count.messages_received, count.bytes_received))
    total = cluster.meters.count()
    assert total.calls == case.size, "something else was charged too"
    assert (total.messages_sent, total.bytes_sent) == (total.messages_received, total.bytes_received)
    return outputs, rows


def rows_of(wire):
    return [wire.row(rank) for rank in range(wire.size)]


@given(cases(dtypes=NUMBERS))
def test_all_reduce(case):
    outputs, rows = metered(case, "all_reduce")
    wire = Wire(case.size)
    expected = ring_all_reduce(wire, case.tensors)
    assert all(torch.equal(y, z) for y, z in zip(outputs, expected, strict=True))
    assert rows == rows_of(wire)


@given(cases(free=True, dtypes=NUMBERS))
def test_all_gather(case):
    outputs, rows = metered(case, "all_gather", dim=case.dim)
    wire = Wire(case.size)
    expected = ring_all_gather(wire, case.tensors)
    assert all(torch.equal(y, torch.cat(row, case.dim)) for y, row in zip(outputs, expected, strict=True))
    assert rows == rows_of(wire)


@given(cases(dtypes=NUMBERS))
def test_reduce_scatter(case):
    outputs, rows = metered(case, "reduce_scatter", dim=case.dim)
    wire = Wire(case.size)
    expected = ring_reduce_scatter(wire, [x.tensor_split(case.size, case.dim) for x in case.tensors])
    assert all(torch.equal(y, z) for y, z in zip(outputs, expected, strict=True))
    assert rows == rows_of(wire)


@given(cases(free=True, dtypes=NUMBERS))
def test_all_to_all(case):
    ndim = case.tensors[0].ndim
    if ndim == 1:
        case.tensors = [case.tensors[0].clone() for _ in case.tensors]  # one dim is cut: the lengths cannot differ
    split_dim = (case.dim + 1) % ndim
    outputs, rows = metered(case, "all_to_all", split_dim=split_dim, concat_dim=case.dim)
    wire = Wire(case.size)
    expected = pairwise(wire, [x.tensor_split(case.size, split_dim) for x in case.tensors])
    assert all(torch.equal(y, torch.cat(row, case.dim)) for y, row in zip(outputs, expected, strict=True))
    assert rows == rows_of(wire)


@given(cases(dtypes=NUMBERS), RANK)
def test_broadcast(case, src):
    src %= case.size
    outputs, rows = metered(case, "broadcast", src=src)
    wire = Wire(case.size)
    expected = chain_broadcast(wire, case.tensors[src], src)
    assert all(torch.equal(y, z) for y, z in zip(outputs, expected, strict=True))
    assert rows == rows_of(wire)


@given(cases(dtypes=NUMBERS), RANK)
def test_reduce(case, dst):
    dst %= case.size
    outputs, rows = metered(case, "reduce", dst=dst)
    wire = Wire(case.size)
    assert torch.equal(outputs[dst], chain_reduce(wire, case.tensors, dst))
    assert rows == rows_of(wire)


@given(cases(dtypes=NUMBERS), RANK)
def test_scatter(case, src):
    src %= case.size
    outputs, rows = metered(case, "scatter", dim=case.dim, src=src)
    wire = Wire(case.size)
    for r, piece in enumerate(case.tensors[src].tensor_split(case.size, case.dim)):
        assert torch.equal(outputs[r], piece if r == src else wire.carry(src, r, piece))
    assert rows == rows_of(wire)


@given(cases(free=True, dtypes=NUMBERS), RANK)
def test_gather(case, dst):
    dst %= case.size
    outputs, rows = metered(case, "gather", dim=case.dim, dst=dst)
    wire = Wire(case.size)
    arrived = [x if r == dst else wire.carry(r, dst, x) for r, x in enumerate(case.tensors)]
    assert torch.equal(outputs[dst], torch.cat(arrived, case.dim))
    assert rows == rows_of(wire)


@given(SIZES)
def test_barrier(size):
    cluster = Cluster(size)
    cluster.run(lambda group: group.barrier())
    wire = Wire(size)
    rounds_of_barrier(wire)
    counts = [cluster.meters.count(rank, "barrier") for rank in range(size)]
    assert [(c.messages_sent, c.bytes_sent, c.messages_received, c.bytes_received) for c in counts] == rows_of(wire)


@given(cases(free=True, dtypes=NUMBERS))
def test_messages(case):
    cluster = Cluster(case.size)

    def program(group):
        for _ in range(2):
            group.send(case.tensors[group.rank], dst=(group.rank + 1) % group.size)
        group.recv(src=(group.rank - 1) % group.size)
        group.recv(src=(group.rank - 1) % group.size)

    cluster.run(program)
    for rank in range(case.size):
        sent, received = (x.numel() * x.element_size() for x in (case.tensors[rank], case.tensors[rank - 1]))
        count = cluster.meters.count(rank, "send")
        assert (count.calls, count.messages_sent, count.bytes_sent) == (2, 2, 2 * sent)
        assert (count.messages_received, count.bytes_received) == (0, 0)
        count = cluster.meters.count(rank, "recv")
        assert (count.calls, count.messages_received, count.bytes_received) == (2, 2, 2 * received)
        assert (count.messages_sent, count.bytes_sent) == (0, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_the_formula_of_the_textbooks(size):
    x = torch.zeros(840, dtype=torch.float32)  # divides by every size here
    whole = x.numel() * 4
    cluster = Cluster(size)

    def program(group):
        group.all_reduce(x)
        group.all_gather(x[: 840 // size])
        group.reduce_scatter(x)
        group.all_to_all(x)

    cluster.run(program)
    for rank in range(size):
        for verb, factor in {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1}.items():
            count = cluster.meters.count(rank, verb)
            assert count.bytes_sent == count.bytes_received == factor * (size - 1) * whole // size


def test_a_strided_tensor_is_charged_for_its_elements_not_for_the_memory_behind_it():
    x = torch.zeros(1, 6, dtype=torch.float64).expand(4, 6)[:, ::2]
    cluster = Cluster(2)
    cluster.run(lambda group: group.all_reduce(x))
    assert cluster.meters.count(0).bytes_sent == 4 * 3 * 8


def test_calls_in_a_sub_group_are_charged_to_the_ranks_of_the_cluster():
    def program(group):
        sub = group.split([[3, 1]])
        if sub.rank is not None:
            sub.broadcast(torch.zeros(2), src=0)

    cluster = Cluster(4)
    cluster.run(program)
    assert [cluster.meters.count(rank).bytes_sent for rank in range(4)] == [0, 0, 0, 8]
    assert [cluster.meters.count(rank).bytes_received for rank in range(4)] == [0, 8, 0, 0]
