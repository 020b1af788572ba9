"""Hardware and links: published figures, the alpha-beta model, the roofline, and what is refused."""

import math

import pytest
import torch
from devices.messages import says

from lib.devices import Cluster, Hardware, Link
from lib.devices.hardware import PRESETS

# Dense peak in TFLOP/s, memory in TB/s and GB, links inside and between nodes in GB/s per device in ONE direction.
# Stas Bekman, Machine Learning Engineering, compute/accelerator and network. For comparison, the data sheets' own ways
# to say it: H100 1,979 TFLOP/s is with 2:4 sparsity, NVLink 900 GB/s adds both directions, NDR 400 Gb/s is in bits.
PUBLISHED = {
    "V100": (125, 0.9, 32, 150, 12.5),
    "A100": (312, 2.039, 80, 300, 25),
    "H100": (989.4, 3.35, 80, 450, 50),
    "H200": (989.4, 4.8, 141, 450, 50),
    "B200": (2250, 8.0, 180, 900, 50),
}


def make(**changes):
    figures = {"flops": 100.0, "memory_bandwidth": 10.0, "memory": 1.0, "inside": Link(1.0, 2.0)} | changes
    return Hardware("Toy", **figures)


def test_there_is_a_preset_for_each_published_device_and_no_other():
    assert set(PRESETS) == {*PUBLISHED, "A100 measured", "H100 measured"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_holds_the_published_figures(name):
    tera_flops, tera_bytes, giga_bytes, inside, between = PUBLISHED[name]
    hardware = Hardware.preset(name)
    assert hardware.name == name
    assert hardware.flops == pytest.approx(tera_flops * 1e12)
    assert hardware.memory_bandwidth == pytest.approx(tera_bytes * 1e12)
    assert hardware.memory == pytest.approx(giga_bytes * 1e9)
    assert hardware.inside.bandwidth == pytest.approx(inside * 1e9)
    assert hardware.between.bandwidth == pytest.approx(between * 1e9)
    # NCCL, src/graph/tuning.cc: ring, Simple protocol, microseconds per hop over NVLink and over the network
    assert (hardware.inside.latency, hardware.between.latency) == pytest.approx((3.4e-6, 14e-6))
    assert (hardware.per_node, hardware.efficiency) == (8, 1.0)


def test_the_figures_are_dense_and_one_way():
    assert Hardware.preset("H100").flops == pytest.approx(1978.8e12 / 2)
    assert Hardware.preset("H100").inside.bandwidth == pytest.approx(900e9 / 2)
    assert Hardware.preset("H100").between.bandwidth == pytest.approx(400e9 / 8)


def test_a_cluster_takes_a_preset_by_its_name():
    assert Cluster(2, hardware="A100").hardware is Hardware.preset("A100")
    assert repr(Cluster(2, hardware="A100")) == "Cluster(2, hardware=A100)"


@pytest.mark.parametrize(("messages", "size"), [(0, 0), (1, 0), (0, 7), (1, 7), (5, 64)])
def test_a_link_takes_alpha_per_message_and_beta_per_byte(messages, size):
    assert Link(latency=3.0, bandwidth=0.5).seconds(messages, size) == 3 * messages + 2 * size


@pytest.mark.parametrize(
    ("flops", "moved", "expected"),
    [
        (1000, 0, 10),  # 100 FLOP/s
        (0, 1000, 100),  # 10 bytes/s
        (1000, 100, 10),  # the ridge: both take as long
        (1000, 110, 11),
        (1100, 100, 11),
        (0, 0, 0),
    ],
)
def test_the_roofline_is_the_longer_of_arithmetic_and_memory(flops, moved, expected):
    assert make().compute_seconds(flops, moved) == expected


def test_efficiency_slows_the_arithmetic_and_not_the_memory():
    half = make(efficiency=0.5)
    assert half.compute_seconds(1000, 0) == 20
    assert half.compute_seconds(0, 1000) == 100


FAST, SLOW = Link(1.0, 2.0), Link(3.0, 1.0)


@pytest.mark.parametrize(
    ("ranks", "link"),
    [
        ((0,), FAST),
        ((7,), FAST),
        ((0, 1, 2, 3), FAST),
        ((4, 5, 6, 7), FAST),
        ((3, 1), FAST),
        ((3, 4), SLOW),
        ((4, 3), SLOW),
        ((0, 4), SLOW),
        (range(8), SLOW),
        ((0, 1, 2, 3, 4), SLOW),
        ((0, 4, 1, 5), SLOW),
        ((8, 9), FAST),
        ((1, 9), SLOW),
    ],
)
def test_a_group_pays_for_the_slowest_link_that_it_crosses(ranks, link):
    assert make(inside=FAST, between=SLOW, per_node=4).link(ranks) is link


def test_the_ring_of_a_sub_group_is_charged_by_the_ranks_of_the_cluster():
    def program(group):
        group.split(2).barrier()  # {0, 1}, {2, 3}: inside a node each
        group.split([[0, 2], [1, 3]]).barrier()

    cluster = Cluster(4, make(inside=FAST, between=SLOW, per_node=2))
    cluster.run(program)
    assert [event.seconds for event in cluster.trace.events] == [1, 1, 1, 1, 3, 3, 3, 3]


def test_a_message_crosses_the_link_between_its_two_ends():
    def program(group):
        if group.rank == 0:
            group.send(torch.zeros(1), 1)
            group.send(torch.zeros(1), 2)
        elif group.rank < 3:
            group.recv(0)

    cluster = Cluster(4, make(inside=FAST, between=SLOW, per_node=2))
    cluster.run(program)
    assert [e.seconds for e in cluster.trace.events if e.kind == "communication"] == 2 * [1 + 4 / 2, 3 + 4 / 1]


MISSING = ("Toy", "rank 3 (node 0)", "rank 4 (node 1)", "between=Link(latency, bandwidth)", "inside one node of 4")


def test_a_missing_link_names_both_ranks_their_nodes_and_the_fix():
    with says(ValueError, *MISSING):
        Cluster(8, make(per_node=4)).run(lambda group: group.barrier())
    with says(ValueError, "rank 1 (node 0)", "rank 6 (node 1)"):
        make(per_node=4).link((1, 6))


def test_a_missing_link_is_named_for_a_message_too():
    def program(group):
        if group.rank == 3:
            group.send(torch.zeros(1), 4)
        elif group.rank == 4:
            group.recv(3)

    with says(ValueError, *MISSING):
        Cluster(8, make(per_node=4)).run(program)


def test_a_missing_link_is_no_matter_while_groups_stay_inside_their_nodes():
    cluster = Cluster(8, make(per_node=4))
    cluster.run(lambda group: group.split(2).barrier())
    assert cluster.trace.seconds == 2  # two rounds of the fast link


@pytest.mark.parametrize("value", [-1, -1e-9, math.nan])
def test_a_link_refuses_negative_figures(value):
    with says(ValueError, "Link", "latency=", str(value), "at least 0"):
        Link(value, 1.0)
    with says(ValueError, "Link", "bandwidth=", str(value), "above 0"):
        Link(1.0, value)


def test_a_link_may_have_no_latency_and_must_have_bandwidth():
    assert Link(0, 2).seconds(10, 6) == 3
    with says(ValueError, "bandwidth=0", "above 0"):
        Link(0, 0)


@pytest.mark.parametrize("field", ["flops", "memory_bandwidth", "memory", "per_node", "efficiency"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_hardware_refuses_negative_figures_and_zero(field, value):
    # Half a device per node is refused for its kind, before its size is looked at.
    error, words = (TypeError, "must be") if field == "per_node" and value is math.nan else (ValueError, "above 0")
    with says(error, "Hardware", f"{field}={value}", words):
        make(**{field: value})


def test_hardware_refuses_an_efficiency_above_one():
    assert make(efficiency=1.0).efficiency == 1
    with says(ValueError, "Toy", "efficiency=1.01", "at most 1"):
        make(efficiency=1.01)


@pytest.mark.parametrize("name", ["H1000", "h100", ""])
def test_an_unknown_preset_is_answered_with_the_list(name):
    with says(ValueError, repr(name), "V100, A100, H100, H200, B200", "Hardware(...)"):
        Cluster(2, hardware=name)
