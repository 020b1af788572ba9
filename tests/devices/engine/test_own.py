"""What a process has one of, each device has of its own: random streams and the default dtype."""

import random
import threading

import numpy as np
import pytest
import torch

from lib.devices import Cluster

DRAWS = {
    "random": (random.seed, random.random),
    "random.gauss": (random.seed, lambda: random.gauss(0, 1)),  # remembers every other number outside of the stream
    "random.shuffle": (random.seed, lambda: random.sample(range(1000), 5)),
    "numpy": (np.random.seed, lambda: float(np.random.rand())),
    "numpy.randn": (np.random.seed, lambda: float(np.random.randn())),
    "torch": (torch.manual_seed, lambda: float(torch.rand(()))),
}


def alone(name, seed, count):
    start, draw = DRAWS[name]
    start(seed)
    return [draw() for _ in range(count)]


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("count", [1, 3, 700])
def test_each_device_has_a_stream_of_its_own(name, count):
    right = [alone(name, seed, 2 * count) for seed in range(3)]

    def program(group):
        start, draw = DRAWS[name]
        start(group.rank)
        first = [draw() for _ in range(count)]
        group.barrier()
        return first + [draw() for _ in range(count)]

    assert Cluster(3).run(program) == right


@pytest.mark.parametrize("name", DRAWS)
def test_streams_start_at_the_caller_s_and_the_caller_goes_on_behind_rank_0(name):
    right = alone(name, 5, 4)
    start, draw = DRAWS[name]
    start(5)
    before = draw()

    def program(group):
        group.barrier()
        first = draw()
        group.barrier()
        if group.rank:
            draw()
        return first

    assert [before, *Cluster(2).run(program), draw()] == [right[0], right[1], right[1], right[2]]


@pytest.mark.parametrize("name", DRAWS)
def test_a_run_that_fails_leaves_the_caller_s_stream_alone(name):
    right = alone(name, 6, 2)
    start, draw = DRAWS[name]
    start(6)
    draw()

    def program(group):
        draw()
        group.barrier()
        raise KeyError("mine")

    with pytest.raises(KeyError):
        Cluster(2).run(program)
    assert draw() == right[1]


def test_the_default_dtype_is_each_device_s_own():
    def program(group):
        if group.rank == 1:
            torch.set_default_dtype(torch.float64)
        group.barrier()
        return torch.ones(1).dtype

    assert Cluster(3).run(program) == [torch.float32, torch.float64, torch.float32]
    assert torch.get_default_dtype() == torch.float32


def test_the_default_dtype_of_rank_0_is_not_the_caller_s():
    Cluster(2).run(lambda group: torch.set_default_dtype(torch.float64))
    assert torch.get_default_dtype() == torch.float32


def test_a_second_run_in_another_thread_is_refused_and_harms_nobody():
    outcome = []

    def other():
        try:
            Cluster(2).run(lambda group: torch.rand(1))
        except RuntimeError as error:
            outcome.append(str(error))

    def program(group):
        first = torch.rand(())
        if group.rank == 0:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        group.barrier()
        return [float(first), float(torch.rand(()))]

    torch.manual_seed(0)
    right = [float(torch.rand(())) for _ in range(2)]
    torch.manual_seed(0)
    assert Cluster(2).run(program) == [right, right]
    assert "another thread of this process runs a cluster" in outcome[0]
    assert Cluster(2).run(lambda group: group.rank) == [0, 1], "afterwards all is free again"


def test_a_device_may_run_a_cluster_of_its_own():
    def program(group):
        inner = Cluster(2).run(lambda small: small.all_reduce(torch.tensor(group.rank)).item())
        return group.all_reduce(torch.tensor(inner[0])).item()

    assert Cluster(2).run(program) == [2, 2]


class Spoilt:
    """An owner that fails from the n-th of its calls on."""

    def __init__(self, nth):
        self._nth, self._calls = nth, 0

    def take_up(self, rank):
        self._calls += 1
        if self._calls >= self._nth:
            raise OSError(f"in call {self._calls}")

    lay_aside = take_up

    def give_back(self, failed):
        assert failed


@pytest.mark.parametrize("nth", range(1, 11))
def test_what_fails_between_two_turns_ends_the_run(nth):
    class Program:
        def owners(self, size):
            return [Spoilt(nth)]

        def __call__(self, group):
            group.barrier()

    def run():
        with pytest.raises(OSError, match=f"in call {nth}$"):  # the first error counts
            Cluster(3).run(Program())  # five turns, since the last to come does not wait: an owner is called ten times
        ended.append(not [each for each in threading.enumerate() if each.name.startswith("device ")])

    ended = []
    runner = threading.Thread(target=run, daemon=True)  # what hangs must not hang the tests
    runner.start()
    runner.join(20)
    assert ended == [True]
