"""Algorithm and bus bandwidth: the factors of nccl-tests, computed from what the verbs move."""

import pytest
import torch
from devices.messages import says

from lib.devices import Cluster, Hardware, Link
from lib.devices.bandwidth import algorithm_bandwidth, bus_bandwidth

# nccl-tests, doc/PERFORMANCE.md: busbw = algbw * factor, for n ranks.
PUBLISHED = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1,
    "reduce": lambda n: 1,
}
SPEED = 450e9
NO_LATENCY = Hardware("no latency", 1e15, 1e12, 1e9, Link(0, SPEED), per_node=64)
CALLS = {
    "all_reduce": lambda group, x: group.all_reduce(x),
    "reduce_scatter": lambda group, x: group.reduce_scatter(x),
    "all_gather": lambda group, x: group.all_gather(x[: len(x) // group.size]),
    "all_to_all": lambda group, x: group.all_to_all(x),
    "broadcast": lambda group, x: group.broadcast(x),
    "reduce": lambda group, x: group.reduce(x),
}
each_verb = pytest.mark.parametrize("verb", PUBLISHED)


@each_verb
def test_the_factors_are_the_published_ones(verb):
    for devices in 2, 3, 4, 7, 8, 16, 72:
        assert bus_bandwidth(verb, 10.0, 2.0, devices) == pytest.approx(5 * PUBLISHED[verb](devices), rel=1e-15)


@each_verb
def test_without_latency_the_bus_is_the_link_whatever_the_number_of_devices(verb):
    for devices in 2, 3, 4, 8, 12:
        x = torch.ones(24 * devices)
        cluster = Cluster(devices, hardware=NO_LATENCY)
        cluster.run(CALLS[verb], x)
        assert bus_bandwidth(verb, x.numel() * 4, cluster.trace.seconds, devices) == pytest.approx(SPEED, rel=1e-12)


def test_algorithm_bandwidth():
    assert algorithm_bandwidth(10, 4) == 2.5


def test_bad_input():
    with says(ValueError, "'barrier'", "all_reduce, all_gather"):
        bus_bandwidth("barrier", 1, 1, 2)
    with says(ValueError, "devices=1"):
        bus_bandwidth("all_reduce", 1, 1, 1)
    for seconds in 0, -1, float("nan"):
        with says(ValueError, "must be above 0"):
            algorithm_bandwidth(1, seconds)
