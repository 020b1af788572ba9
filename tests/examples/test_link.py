"""Timing messages, and the link that fits to the times."""

from itertools import product
from statistics import median

import pytest
import torch
from devices.inputs import use_repeatable_profile
from hypothesis import given
from hypothesis import strategies as st

from lib.devices import Cluster, Hardware, Link
from lib.examples import link as module
from lib.examples.link import all_reduce, all_reduce_seconds, crowded, fit_link, ping_pong, time_conversation
from lib.real.processes import Processes

use_repeatable_profile()
SIZES = [100, 1_000, 10_000, 100_000, 1_000_000]


@given(
    st.floats(1e-7, 1e-2), st.floats(1e6, 1e12), st.integers(1, 20),
    st.lists(st.integers(0, 10**8), min_size=2, max_size=9, unique=True),
)  # fmt: skip
def test_exact_times_give_back_their_link(latency, bandwidth, messages, sizes):
    sizes.append(2 * max(sizes) + 1_000)  # sizes of which some differ by more than rounding
    link = Link(latency, bandwidth)
    seconds = [link.seconds(messages, size) for size in sizes]
    fitted = fit_link(messages, sizes, seconds)
    assert [fitted.seconds(messages, size) for size in sizes] == pytest.approx(seconds, rel=1e-9)


def test_both_numbers_come_back():
    link = Link(50e-6, 2e9)
    fitted = fit_link(6, SIZES, [link.seconds(6, size) for size in SIZES])
    assert (fitted.latency, fitted.bandwidth) == pytest.approx((50e-6, 2e9), rel=1e-12)


def error(link, messages, seconds):
    """What `fit_link` shall make small: the sum of the squares of the relative errors."""
    return sum((link.seconds(messages, n) / t - 1) ** 2 for n, t in zip(SIZES, seconds, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_no_link_near_it_fits_noisy_times_better(seed):
    noise = 1 + 0.2 * torch.randn(len(SIZES), generator=torch.Generator().manual_seed(seed))
    seconds = [Link(1e-4, 1e9).seconds(2, size) * factor for size, factor in zip(SIZES, noise.tolist(), strict=True)]
    fitted = fit_link(2, SIZES, seconds)
    for a, b in product([0.999, 1, 1.001], repeat=2):
        assert error(fitted, 2, seconds) <= error(Link(a * fitted.latency, b * fitted.bandwidth), 2, seconds)
    assert fitted.latency == pytest.approx(1e-4, rel=0.3)
    assert fitted.bandwidth == pytest.approx(1e9, rel=0.5)


def test_times_below_the_line_give_no_negative_latency():
    seconds = [size / 1e9 * (0.5 if size == 100 else 1) for size in SIZES]
    fitted = fit_link(1, SIZES, seconds)
    assert fitted.latency == 0
    for b in (0.999, 1.001):
        assert error(fitted, 1, seconds) < error(Link(0.0, b * fitted.bandwidth), 1, seconds)


@pytest.mark.parametrize(
    ("messages", "sizes", "seconds", "says"),
    [
        (1, [100], [1e-3], r"fit_link\(messages=1\) of 1 sizes and 1 times"),
        (1, [], [], "of 0 sizes and 0 times"),
        (1, [100, 100], [1e-3, 2e-3], "two different sizes"),
        (1, [100, 200, 300], [1e-3, 2e-3], "of 3 sizes and 2 times"),
        (0, [100, 200], [1e-3, 2e-3], r"messages=0\) of .* at least one message"),
        (1, [100, -200], [1e-3, 2e-3], "two different sizes"),
        (1, [100, float("inf")], [1e-3, 2e-3], "two different sizes"),
        (1, [100, 200], [0.0, 2e-3], r"not all above 0: \[0\.0, 0\.002\]"),
        (1, [100, 200], [1e-3, float("nan")], "not all above 0"),
        (1, [100, 200_000], [2e-3, 1e-3], "do not grow with the sizes.*Measure larger sizes"),
    ],
)
def test_numbers_that_are_no_links_are_refused(messages, sizes, seconds, says):
    with pytest.raises(ValueError, match=says):
        fit_link(messages, sizes, seconds)


def test_the_median_over_repeats_of_the_slowest_device(monkeypatch):
    seconds = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0))  # (repeats, sizes, devices)
    now = 0.0
    monkeypatch.setattr(module, "perf_counter", lambda: now)

    def program(group):
        calls = iter([*torch.full((3,), 100.0), *seconds[:, :, group.rank].flatten()])  # first the warm-up

        def conversation(_, x):  # talks to nobody, so no other device runs meanwhile
            nonlocal now
            now += next(calls).item()

        return time_conversation(group, conversation, [8, 16, 24], repeats=5)

    expected = [median(column) for column in seconds.amax(dim=2).T.tolist()]
    for found in Cluster(4).run(program):
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("conversation", [ping_pong, all_reduce])
def test_every_exchange_moves_the_sizes_it_was_asked_for(conversation):
    cluster, sizes, times = Cluster(3), [30, 300, 3_000], 4 + 1
    cluster.run(time_conversation, conversation, sizes, repeats=4)
    sent = [cluster.meters.count(rank, "send").bytes_sent for rank in range(3)]
    if conversation is ping_pong:
        assert sent == [times * sum(sizes), times * sum(sizes), 0]
        assert [cluster.meters.count(rank, "recv").calls for rank in range(3)] == [times * 3, times * 3, 0]
    else:
        results = 2 * 8 * 4 * 3 * 2 // 3  # the times themselves, 4 repeats x 3 sizes of 8 bytes, travel once
        assert cluster.meters.count(0, "all_reduce").bytes_sent == times * sum(sizes) * 2 * 2 // 3 + results
    assert cluster.meters.count(0, "barrier").calls == 4 * 3


@pytest.mark.parametrize(
    ("conversation", "devices", "messages", "factor"),
    [(ping_pong, 2, 2, 2), (all_reduce, 2, 2, 1), (all_reduce, 4, 6, 1.5)],
)
def test_the_simulation_predicts_what_the_link_says(conversation, devices, messages, factor):
    link = Link(3e-4, 1e9)
    cluster = Cluster(devices, Hardware("this laptop", 1e12, float("inf"), 16e9, link))
    cluster.run(conversation, torch.ones(40_000, dtype=torch.uint8))
    assert cluster.trace.seconds == pytest.approx(link.seconds(messages, factor * 40_000), rel=1e-12)


def test_real_messages():
    here, there = Processes(2).run(time_conversation, ping_pong, [1_000, 64_000_000], repeats=3)
    assert here == there
    assert 0 < here[0] < here[1]
    fit_link(2, [2_000, 128_000_000], here)


def test_who_shares_a_core_waits_for_its_turn():
    link = Link(1e-3, 1e9)
    assert crowded(link, 4, 2) == Link(2e-3, 0.5e9)
    assert crowded(link, 3, 2) == Link(1.5e-3, 1e9 / 1.5)
    assert crowded(link, 2, 2) == crowded(link, 2, 8) == link
    for bad in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match="there must be at least one of each"):
            crowded(link, *bad)


def test_an_all_reduce_is_a_ring_and_the_announcements():
    # 9 messages of 1 ms and 1.5 MB at 1 GB/s, everything twice as long for four processes on two cores
    assert all_reduce_seconds(Link(1e-3, 1e9), 4, 1_000_000, cores=2) == pytest.approx(2 * (9e-3 + 1.5e-3))
    assert all_reduce_seconds(Link(1e-3, 1e9), 4, 1_000_000, cores=4) == pytest.approx(9e-3 + 1.5e-3)
    assert all_reduce_seconds(Link(1e-3, 1e9), 1, 1_000_000, cores=1) == 0
