"""All-reduce by hand: four programs that give the same sum at different prices."""

from math import ceil, inf, log2

import pytest
import torch
from devices.messages import says

from lib.devices import Cluster, Hardware, Link
from lib.devices.algorithms import (
    halving_doubling,
    naive,
    ring,
    ring_all_gather,
    ring_reduce_scatter,
    seconds,
    tree,
    tree_broadcast,
)

ALPHA, BETA = 1024.0, 2.0
LINK = Link(ALPHA, 1 / BETA)
PURE_LINK = Hardware("Pure link", inf, inf, 1.0, LINK, per_node=1024)  # adding is free

ALGORITHMS = pytest.mark.parametrize("algorithm", [naive, ring, tree, halving_doubling], ids=lambda f: f.__name__)
SIZES = (1, 2, 3, 4, 6, 9)  # none, one and several rounds; powers of two, and others, even and odd


def sizes_for(algorithm):
    return (1, 2, 4, 8) if algorithm is halving_doubling else SIZES


def run(algorithm, parts, shape, dtype=torch.int64):
    """Runs it on different numbers; returns the cluster, what each device brought, and what each got."""
    generator = torch.Generator().manual_seed(parts)
    tensors = [torch.randint(-99, 100, shape, generator=generator).to(dtype) for _ in range(parts)]
    cluster = Cluster(parts, PURE_LINK)
    return cluster, tensors, cluster.run(lambda group: algorithm(group, tensors[group.rank]))


def counts(cluster):
    """Per device: messages and bytes sent, messages and bytes received."""
    both = [cluster.meters.count(rank) for rank in range(cluster.size)]
    return [(c.messages_sent, c.bytes_sent, c.messages_received, c.bytes_received) for c in both]


@ALGORITHMS
def test_every_device_gets_the_sum(algorithm):
    for parts in sizes_for(algorithm):
        for shape in ((), (1,), (7,), (4, 2, 3), (2, 0)):
            _, tensors, outputs = run(algorithm, parts, shape)
            assert all(torch.equal(y, sum(tensors)) for y in outputs), (parts, shape)


@ALGORITHMS
def test_floats_are_close_to_the_sum_and_alike_on_all_devices(algorithm):
    cluster = Cluster(8)
    x = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    outputs = cluster.run(lambda group: algorithm(group, x[group.rank]))
    torch.testing.assert_close(outputs[0], x.sum(0))
    assert all(torch.equal(y, outputs[0]) for y in outputs)


@ALGORITHMS
def test_what_was_brought_is_untouched_and_what_comes_is_ones_own(algorithm):
    x = torch.ones(5)

    def program(group):
        y = algorithm(group, x)
        y += 1
        group.barrier()
        return y

    for parts in (1, 4):
        outputs = Cluster(parts).run(program)
        assert all(torch.equal(y, torch.full((5,), parts + 1.0)) for y in outputs)
        assert torch.equal(x, torch.ones(5))


@ALGORITHMS
def test_a_strided_tensor_is_summed_as_well(algorithm):
    x = torch.arange(12).reshape(3, 4).t()
    outputs = Cluster(4).run(lambda group: algorithm(group, x))
    assert all(torch.equal(y, 4 * x) for y in outputs)


@pytest.mark.parametrize("parts", [3, 5, 6, 7, 9, 12])
def test_halving_refuses_what_is_no_power_of_two(parts):
    with says(ValueError, "halving_doubling", f"of {parts}", "power of two", "use ring or tree"):
        Cluster(parts).run(lambda group: halving_doubling(group, torch.ones(8)))


# Bytes and messages of the busiest device, in the busier direction. N = 5040 * 8 bytes is divided by all P.
WHOLE = 5040 * 8
BUSIEST = {
    naive: lambda p: (p - 1, (p - 1) * WHOLE),
    ring: lambda p: (2 * (p - 1), 2 * (p - 1) * WHOLE // p),
    tree: lambda p: (ceil(log2(p)), ceil(log2(p)) * WHOLE),  # rank 0: so many children
    halving_doubling: lambda p: (2 * int(log2(p)), 2 * (p - 1) * WHOLE // p),
}


@ALGORITHMS
def test_the_busiest_device(algorithm):
    for parts in sizes_for(algorithm):
        cluster, *_ = run(algorithm, parts, (5040,))
        rows = counts(cluster)
        busiest = max(max(row[0], row[2]) for row in rows), max(max(row[1], row[3]) for row in rows)
        assert busiest == BUSIEST[algorithm](parts), parts


@pytest.mark.parametrize("algorithm", [naive, tree])
def test_whole_tensors_travel_up_once_and_down_once(algorithm):
    for parts in SIZES:
        rows = counts(run(algorithm, parts, (5040,))[0])
        assert sum(row[1] for row in rows) == 2 * (parts - 1) * WHOLE
        assert rows[0] == (rows[0][0], rows[0][0] * WHOLE, rows[0][0], rows[0][0] * WHOLE)


@pytest.mark.parametrize("algorithm", [ring, halving_doubling])
def test_all_devices_carry_the_same(algorithm):
    for parts in sizes_for(algorithm):
        assert len(set(counts(run(algorithm, parts, (5040,))[0]))) == 1


# Time. Naive is a plain sum: P-1 whole tensors in, then P-1 out.
# MPICH's comments: 2 lg(p) alpha + 2 n (p-1)/p beta for Rabenseifner's halving and doubling, and lg(p) (alpha + n beta)
# for a binomial tree, up or down; Patarasuk and Yuan 2009: 2 (p-1) alpha + 2 n (p-1)/p beta for the ring.
PUBLISHED = {
    naive: lambda p, n: 2 * (p - 1) * (ALPHA + n * BETA),
    ring: lambda p, n: 2 * (p - 1) * ALPHA + 2 * n * (p - 1) / p * BETA,
    tree: lambda p, n: 2 * ceil(log2(p)) * (ALPHA + n * BETA),
    halving_doubling: lambda p, n: 2 * log2(p) * ALPHA + 2 * n * (p - 1) / p * BETA,
}


@ALGORITHMS
@pytest.mark.parametrize("whole", [0, 8 * 1, 8 * 5040])
def test_time_is_that_of_the_published_formula_and_of_seconds(algorithm, whole):
    for parts in sizes_for(algorithm):
        if whole // 8 % parts:
            continue
        cluster, *_ = run(algorithm, parts, (whole // 8,))
        assert cluster.trace.seconds == pytest.approx(PUBLISHED[algorithm](parts, whole), rel=1e-12), parts
        assert seconds(algorithm, parts, whole, LINK) == pytest.approx(cluster.trace.seconds, rel=1e-12), parts


@pytest.mark.parametrize("parts", [32, 33])
def test_time_on_many_devices(parts):
    length = 33 * 32
    for algorithm in (naive, ring, tree, halving_doubling):
        if algorithm is halving_doubling and parts == 33:
            continue
        cluster, *_ = run(algorithm, parts, (length,))
        assert cluster.trace.seconds == pytest.approx(PUBLISHED[algorithm](parts, 8 * length), rel=1e-12)


def test_which_one_wins_depends_on_the_size():
    small = {f: seconds(f, 8, 8, LINK) for f in PUBLISHED}
    large = {f: seconds(f, 8, 8e6, LINK) for f in PUBLISHED}
    assert small[tree] < small[ring]
    assert small[halving_doubling] < small[naive]
    assert large[halving_doubling] < large[ring] < large[tree] < large[naive]


def test_seconds_refuses_what_it_has_no_formula_for():
    with says(ValueError, "naive, ring, tree, halving_doubling"):
        seconds(sum, 4, 8, LINK)


# ---- the ring by hand is what Group.all_reduce is charged ----


def test_the_ring_by_hand_costs_each_device_what_all_reduce_costs():
    for parts in SIZES:
        for length in (0, 1, 5, 5040):
            by_hand, tensors, _ = run(ring, parts, (length,))
            cluster = Cluster(parts, PURE_LINK)
            cluster.run(lambda group, tensors=tensors: group.all_reduce(tensors[group.rank]))
            assert counts(by_hand) == counts(cluster), (parts, length)
            if length % parts == 0:
                assert by_hand.trace.seconds == pytest.approx(cluster.trace.seconds, rel=1e-12)


def test_no_hand_written_algorithm_moves_fewer_bytes_than_the_ring():
    ring_bytes = BUSIEST[ring](8)[1]
    assert all(BUSIEST[f](8)[1] >= ring_bytes for f in BUSIEST)


# ---- the two trips of the ring, and the tree that only goes down ----


@pytest.mark.parametrize("length", [0, 1, 7, 5040])
def test_the_two_trips_are_the_two_verbs(length):
    for parts in SIZES:
        tensors = [torch.arange(length) * 10**rank for rank in range(parts)]
        first, verb = Cluster(parts, PURE_LINK), Cluster(parts, PURE_LINK)
        pieces = first.run(lambda group, tensors=tensors: ring_reduce_scatter(group, tensors[group.rank]))
        expected = verb.run(lambda group, tensors=tensors: group.reduce_scatter(tensors[group.rank]))
        assert all(torch.equal(a, b) for a, b in zip(pieces, expected, strict=True)), parts
        assert counts(first) == counts(verb), parts
        second, verb = Cluster(parts, PURE_LINK), Cluster(parts, PURE_LINK)
        wholes = second.run(lambda group, pieces=pieces: ring_all_gather(group, pieces[group.rank]))
        expected = verb.run(lambda group, pieces=pieces: group.all_gather(pieces[group.rank]))
        assert all(torch.equal(a, b) for a, b in zip(wholes, expected, strict=True)), parts
        assert counts(second) == counts(verb), parts
        if length % parts == 0:  # MPICH: (p-1) alpha + n (p-1)/p beta, n = all gathered bytes
            published = (parts - 1) * ALPHA + 8 * length * (parts - 1) / parts * BETA
            assert first.trace.seconds == pytest.approx(published, rel=1e-12)
            assert second.trace.seconds == pytest.approx(published, rel=1e-12)


def test_a_tree_broadcasts_in_log_steps():
    x = torch.arange(10)
    for parts in (*SIZES, 16, 17):
        for src in {0, 1 % parts, parts - 1}:
            cluster = Cluster(parts, PURE_LINK)
            outputs = cluster.run(lambda group, src=src: tree_broadcast(group, x if group.rank == src else None, src))
            assert all(torch.equal(y, x) for y in outputs)
            assert cluster.trace.seconds == ceil(log2(parts)) * (ALPHA + 80 * BETA)  # MPICH: lg(p) (alpha + n beta)
            received = [cluster.meters.count(rank).messages_received for rank in range(parts)]
            assert received == [int(rank != src) for rank in range(parts)]


@pytest.mark.parametrize("algorithm", [ring_all_gather, tree_broadcast, ring_reduce_scatter])
def test_what_comes_out_is_ones_own(algorithm):
    x = torch.ones(4)
    for parts in 1, 2:
        for y in Cluster(parts).run(algorithm, x):
            y += 1
        assert torch.equal(x, torch.ones(4))
