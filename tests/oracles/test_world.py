"""The oracle itself: real processes, whose errors come out with their rank."""

import os

import pytest
import torch
import torch.distributed as dist


def who_am_i():
    return dist.get_rank(), dist.get_world_size(), os.getpid(), dist.get_backend()


def test_they_are_processes_that_talk_through_gloo(world):
    answers = world.run(who_am_i)
    assert [answer[:2] for answer in answers] == [(rank, world.size) for rank in range(world.size)]
    assert len({os.getpid(), *(answer[2] for answer in answers)}) == world.size + 1
    assert {answer[3] for answer in answers} == {"gloo"}


def fails_on_the_last():
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ZeroDivisionError("on purpose")
    dist.barrier()


def dies_on_the_last():
    if dist.get_rank() == dist.get_world_size() - 1:
        os._exit(1)
    dist.barrier()


def add_up(x):
    dist.all_reduce(x)
    return x


@pytest.mark.parametrize(("program", "why"), [(fails_on_the_last, "on purpose"), (dies_on_the_last, "has ended")])
def test_an_error_ends_all_names_its_rank_and_the_next_program_runs(worlds, program, why):
    # The others may notice first, by the closed connection: then they are the ones named.
    with pytest.raises(RuntimeError, match=rf"rank \d of 2 real processes: [\s\S]*({why}|closed|reset)"):
        worlds[2].run(program)
    assert [float(y) for y in worlds[2].run(add_up, torch.ones(()))] == [2.0, 2.0]
