"""A script as a reader writes it: `torchrun --nproc-per-node 2 real_script.py`. Each process says what it found."""

import os
import sys
import time

import torch
from oracles.agree import compare
from oracles.real_errors import OurOwnError, last
from oracles.real_layers import PROGRAMS, make_gpt
from oracles.real_verbs import everything_else

from lib import dense_state
from lib.devices import Cluster
from lib.real.torchrun import Torchrun, devices, launch

SIZE = 2


def everything(group):
    return everything_else(group), PROGRAMS["GPT"](group), torch.rand(3)


def itself(group):
    return group


def rank_of(group):
    return group.rank


def waits_for_who_has_failed(group):
    """There is no connection that could break: this sub-group has never met."""
    pair = group.split(1)
    if last(group):
        raise OurOwnError("on purpose")
    return pair.all_reduce(torch.ones(1))


def fails_on_rank_1(group):
    group.barrier()
    if group.rank == 1:
        raise OurOwnError("on purpose")
    time.sleep(300)


def dies_on_rank_1(group):
    group.barrier()
    if group.rank == 1:
        os._exit(7)
    group.barrier()


def fails_everywhere(group):
    raise OurOwnError("on purpose")


def leaves_on_rank_1(group):
    if group.rank == 1:
        sys.exit(3)
    group.barrier()


def waits_for_ever(group):
    return group.recv((group.rank + 1) % group.size)


def say(text):
    os.write(sys.stdout.fileno(), f"{text}\n".encode())  # in one piece: all write into one pipe


def agrees():
    """Two runs after each other, and the same two simulated."""
    model = dense_state(launch(make_gpt, size=SIZE))
    compare(dense_state(Cluster(SIZE).run(make_gpt)), model, "all", atol=0)
    torch.manual_seed(int(os.environ["RANK"]))  # rank 0's counts
    real = devices(SIZE)
    assert isinstance(real, Torchrun)
    found = [(real.run(everything), real.meters.rows()) for _ in range(2)]
    stream = torch.get_rng_state()
    torch.manual_seed(0)
    for results, rows in found:
        simulated = Cluster(SIZE)
        for rank, (ours, theirs) in enumerate(zip(simulated.run(everything), results, strict=True)):
            compare(ours, theirs, f"rank {rank}", atol=1e-12)
        assert simulated.meters.rows() == rows
    assert torch.equal(torch.get_rng_state(), stream)


def goes_on_after_errors():
    """Who catches what a run raises may start another."""
    try:
        launch(waits_for_who_has_failed)
    except OurOwnError:
        assert int(os.environ["RANK"]) == SIZE - 1
    except ConnectionError as error:
        assert int(os.environ["RANK"]) != SIZE - 1  # noqa: PT017
        say(f"heard by {os.environ['RANK']}: {error}")
    assert launch(rank_of) == list(range(SIZE))


def refuses():
    group = launch(itself)[int(os.environ["RANK"])]
    for call in (lambda: launch(everything, size=3), group.barrier):
        try:
            call()
        except (ValueError, RuntimeError) as error:
            say(error)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "well":
        for step in (agrees, refuses, goes_on_after_errors):
            step()
            say(f"rank {os.environ['RANK']} {step.__name__}")
    else:
        launch(globals()[sys.argv[1]])
