"""The pictures of context parallelism show what the library counts, and say it."""

import re

import pytest

from book.pictures.context import draw_context
from book.pictures.context_ring import draw_ring
from lib.costs.context import pairs_by_hop


def cells(picture, look=None):
    """{rank: how many cells of the mask it has}."""
    found = re.findall(r'data-rank="(\d)" data-look="(\w+)" data-cells="(\d+)"', picture.svg())
    counts = {}
    for rank, seen, number in found:
        if look in (None, seen):
            counts[int(rank)] = counts.get(int(rank), 0) + int(number)
    return counts


@pytest.mark.parametrize("order", ["contiguous", "striped", "zigzag"])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_cells_are_the_pairs_of_each_device(order, devices):
    picture, work = draw_context(order, devices), pairs_by_hop(16, devices, order)
    assert cells(picture) == {rank: sum(hops) for rank, hops in enumerate(work)}
    assert sum(cells(picture).values()) == 16 * 17 / 2
    for rank, hops in enumerate(work):
        assert f"rank {rank}: {sum(hops)} ({' + '.join(map(str, hops))})" in picture.desc


@pytest.mark.parametrize("order", ["zigzag", (8, 5, 3)], ids=str)
def test_packed_documents_have_a_triangle_each(order):
    picture = draw_context(order, 4, documents=(8, 5, 3))
    assert sum(cells(picture).values()) == 8 * 9 / 2 + 5 * 6 / 2 + 3 * 4 / 2
    assert "16 tokens in documents of 8, 5, 3" in picture.desc


def test_documents_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"documents of \(8, 5\) tokens are not a sequence of tokens=16"):
        draw_context("zigzag", 4, documents=(8, 5))


def test_a_hop_stands_out():
    work = pairs_by_hop(16, 4, "contiguous")
    for hop in range(4):
        picture = draw_context("contiguous", 4, hop=hop)
        assert cells(picture, "now") == {rank: hops[hop] for rank, hops in enumerate(work) if hops[hop]}
        assert f"At hop {hop}: rank 0 computes {work[0][hop]} pair" in picture.desc


def test_who_is_idle():
    assert "Idle while the busiest device works: 0%" in draw_context("zigzag", 4).svg()
    assert draw_context("zigzag", 4).svg().count('data-look="idle"') == 0
    assert "Idle while the busiest device works: 41%" in draw_context("contiguous", 4).svg()
    assert draw_context("contiguous", 4).svg().count('data-look="idle"') == 3


def test_the_hop_numbers_stand_in_the_cells():
    """The last query, on device 3 of 4, meets the keys of devices 0 to 3 at hops 3 to 0."""
    rows = re.findall(r'fill="[^"]*">(\d+)</text>', draw_context("contiguous", 4).svg())
    assert rows[15] == "3333222211110000"
    assert not re.findall(r">(\d{3,})</text>", draw_context("contiguous", 4, tokens=32).svg()), "too small to read"


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_whose_keys_are_where(phase):
    for hop in range(4):
        picture = draw_ring("zigzag", 4, hop, phase)
        keys = [int(source) for source in re.findall(r'data-keys="(\d)"', picture.svg())]
        assert keys == [(rank - hop) % 4 for rank in range(4)]
        assert ("data-message" in picture.svg()) == (hop < 3)


def test_the_sums_of_gradients_have_been_with_everyone_but_the_owner():
    picture = draw_ring("zigzag", 4, 3, "backward")
    assert "rank 0 has the keys of rank 1" in picture.desc
    assert "the sum of their gradients holds the terms of 2, 3, 0" in picture.desc
    assert "home to their owners: the last hop" in picture.desc


def test_early_devices_of_a_contiguous_cut_see_nothing():
    picture = draw_ring("contiguous", 4, 1)
    assert "rank 0 has the keys of rank 3 and computes 0 pairs; it has merged what it sees of rank 0;" in picture.desc
    assert "nothing to see" in picture.svg()


def test_later_hops_show_the_last():
    assert draw_ring("zigzag", 2, 5).svg() == draw_ring("zigzag", 2, 1).svg()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: draw_context("zigzag", 9), "1 to 8 devices"),
        (lambda: draw_context("zigzag", 4, tokens=33), "up to 32 tokens"),
        (lambda: draw_context("zigzag", 8, tokens=7), "cannot be cut over 8 devices"),
        (lambda: draw_ring("zigzag", 1, 0), "two devices or more"),
        (lambda: draw_ring("zigzag", 4, 0, "sideways"), "phase='sideways'"),
    ],
)
def test_refused(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
