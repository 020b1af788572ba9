"""What a program puts in the place of PyTorch's functions and classes is its own device's, for the time of the run."""

import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from lib import Cluster, guest

RELU, FORWARD, ALL_REDUCE = F.relu, nn.Linear.forward, dist.all_reduce


def start():
    dist.init_process_group("gloo")
    return dist.get_rank()


def meet():
    dist.all_reduce(torch.ones(1))


def zeros():
    layer = nn.Linear(2, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer(torch.ones(1, 2)).item()


def of_a_class():
    rank, real = start(), nn.Linear.forward
    nn.Linear.forward = lambda layer, x: real(layer, x) + rank
    meet()
    return zeros()


def of_a_module():
    rank, real = start(), F.relu
    F.relu = functools.partial(lambda add, x: real(x) + add, rank)
    meet()
    return F.relu(torch.zeros(1)).item()


def as_a_property():
    rank = start()
    torch.Tensor.owner = property(lambda x: rank)
    meet()
    return torch.ones(1).owner


def wrapped_by_pytorch():
    rank = start()
    torch.optim.SGD.step = lambda optimizer: rank
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    meet()
    return optimizer.step()


def that_wraps():
    rank, real = start(), F.relu

    @functools.wraps(real)
    def relu(x):
        return real(x) + rank

    F.relu = relu
    meet()
    return F.relu(torch.zeros(1)).item()


def a_class():
    rank = start()

    class Layer(nn.Linear):
        owner = rank

    nn.Linear = Layer
    meet()
    return nn.Linear(1, 1).owner


def replaced_again():
    rank = start()
    for add in (10, 0):
        nn.Linear.forward = lambda layer, x, add=add: torch.full((1,), float(rank + add))
        meet()
    return zeros()


@pytest.mark.parametrize(
    "program", [of_a_class, of_a_module, as_a_property, wrapped_by_pytorch, that_wraps, a_class, replaced_again]
)
def test_each_device_has_its_own(program):
    step = torch.optim.SGD.step
    assert Cluster(3).run(guest(program)) == [0, 1, 2]
    assert (F.relu, nn.Linear.forward, torch.optim.SGD.step) == (RELU, FORWARD, step)
    assert nn.Linear is nn.modules.linear.Linear
    assert not hasattr(torch.Tensor, "owner")


class Anything:
    """A stand-in for a package that is not there: it has whatever one asks for."""

    def __getattr__(self, name):
        return self


def a_stand_in():
    rank = start()
    torch.somewhere = Anything()
    meet()
    return rank


def test_a_stand_in_that_has_every_attribute():
    try:
        assert Cluster(2).run(guest(a_stand_in)) == [0, 1]
    finally:
        del torch.somewhere


def only_on_rank_0():
    if start() == 0:
        nn.Linear.forward = lambda layer, x: torch.full((1,), 7.0)
    meet()
    meet()
    return zeros()


def test_who_replaces_nothing_has_what_is_pytorchs():
    assert Cluster(3).run(guest(only_on_rank_0)) == [7.0, 0.0, 0.0]


def and_fails():
    torch.optim.SGD.step = lambda optimizer: None
    meet_nobody = start() == 0
    dist.all_reduce = lambda x: x
    if meet_nobody:
        raise ValueError("on rank 0")
    dist.barrier()


def test_a_failed_run_leaves_no_trace():
    step = torch.optim.SGD.step  # PyTorch has wrapped it where any test has made one
    with pytest.raises(ValueError, match="on rank 0"):
        Cluster(2).run(guest(and_fails))
    assert torch.optim.SGD.step is step
    assert dist.all_reduce is ALL_REDUCE


def late():
    rank = start()
    for _ in range(100):
        meet()
    nn.Linear.forward = lambda layer, x: torch.full((1,), float(rank))
    return zeros()


def test_what_is_replaced_late_leaves_no_trace():
    assert Cluster(2).run(guest(late)) == [0, 1]
    assert nn.Linear.forward is FORWARD
