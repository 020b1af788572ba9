"""Hops: what every device holds after each step, against an independent replay."""

import pytest
import torch

from book import draw_hops, hops
from lib.devices import algorithms

ALGORITHMS = [algorithms.naive, algorithms.ring, algorithms.tree, algorithms.halving_doubling]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("devices", [2, 3, 4, 8])
def test_it_starts_with_the_terms_and_ends_with_the_sum(algorithm, devices):
    if algorithm is algorithms.halving_doubling and devices == 3:
        pytest.skip("for powers of two")
    steps = hops(algorithm, devices)
    assert steps[0].messages == ()
    assert steps[0].holds == tuple(tuple((i + 1) * 10**r for i in range(devices)) for r in range(devices))
    total = tuple((i + 1) * int("1" * devices) for i in range(devices))
    assert steps[-1].holds == (total,) * devices


def test_the_number_of_steps():
    counted = {f.__name__: len(hops(f, 4)) - 1 for f in ALGORITHMS}
    assert counted == {"naive": 6, "ring": 6, "tree": 4, "halving_doubling": 4}


def test_the_ring_step_by_step():
    """In step k of the first trip device r sends piece r - k, with the terms of k devices; then finished pieces."""
    steps = hops(algorithms.ring, 4)
    for k, step in enumerate(steps[1:], 1):
        assert [(m.src, m.dst, m.size) for m in step.messages] == [(r, (r + 1) % 4, 8) for r in range(4)]
        for m in step.messages:
            piece = (m.src - k) % 4 if k <= 3 else (m.src - (k - 4)) % 4
            terms = [(m.src - i) % 4 for i in range(k)] if k <= 3 else range(4)
            assert m.numbers == ((piece + 1) * sum(10**t for t in terms),)


def test_a_tree_halves_the_talkers():
    steps = hops(algorithms.tree, 8)
    assert [len(step.messages) for step in steps] == [0, 4, 2, 1, 1, 2, 4]


def test_a_picture_says_what_travels_and_who_is_busy():
    steps = hops(algorithms.naive, 4)
    picture = draw_hops(steps, 1, "naive")
    assert "rank 1 sends 10, 20, 30, 40 (32 bytes) to rank 0" in picture.desc
    assert 'data-message="1&gt;0"' in picture.svg()
    last = draw_hops(steps, 6, "naive")
    assert "Busiest device so far: 96 bytes one way. All together: 192." in last.desc
    assert draw_hops(steps, 99, "naive").svg() == last.svg()


def test_finished_pieces_are_filled():
    steps = hops(algorithms.ring, 4)
    assert draw_hops(steps, 0).svg().count('data-look="sharded"') == 0
    assert draw_hops(steps, 3).svg().count('data-look="sharded"') == 4
    assert draw_hops(steps, 6).svg().count('data-look="sharded"') == 16


def test_the_readers_own_function_can_be_stepped():
    def mine(group, x):
        group.send(x, (group.rank + 1) % 2)
        return x + group.recv((group.rank + 1) % 2)

    assert len(hops(mine, 2)) == 2


def test_what_is_no_all_reduce_is_refused():
    with pytest.raises(ValueError, match="<lambda> is no all-reduce"):
        hops(lambda group, x: x, 2)
    with pytest.raises(ValueError, match="ring_reduce_scatter is no all-reduce"):
        hops(algorithms.ring_reduce_scatter, 2)
    with pytest.raises(ValueError, match="2 to 8 devices"):
        hops(algorithms.ring, 9)


def test_what_is_noted_is_what_arrived():
    def program(group, x):
        if group.rank == 0:
            group.send(x, 1)
            return group.recv(1)
        y = group.recv(0)
        y += x  # a change of the received tensor must not change what was noted
        group.send(y, 0)
        return y

    assert hops(program, 2)[1].messages[0].numbers == (1, 2)
    assert torch.equal(torch.tensor(hops(program, 2)[-1].holds[0]), torch.tensor([11, 22]))
