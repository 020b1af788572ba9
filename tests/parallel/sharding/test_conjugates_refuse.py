"""Mistakes with conjugate functions, named."""

import pytest
import torch
from devices.messages import says

from lib import (
    all_gather,
    all_to_all,
    copy_to,
    gather_from,
    reduce_from,
    reduce_scatter,
    scatter_to,
)
from lib.devices import Cluster


@pytest.mark.parametrize("function", [gather_from, all_gather])
def test_pieces_that_do_not_follow_the_rule(function):
    def program(group):
        return function(torch.ones(1 + group.rank, 3), group, 0)

    fragments = [
        f"{function.__name__} on rank 1 of 2: this device brought 2 of 3 along dim 0",
        "the sharding rule gives it 1",
        "Cut the tensor with shard(x, group, dim=0)",
    ]
    with says(ValueError, *fragments):
        Cluster(2).run(program)


def test_pieces_that_do_not_follow_the_rule_in_all_to_all():
    def program(group):
        return all_to_all(torch.ones(1 + group.rank, 4), group, 1, 0)

    with pytest.raises(ValueError, match=r"all_to_all on rank . of 2: this device brought . of 3 along dim 0"):
        Cluster(2).run(program)


@pytest.mark.parametrize("function", [scatter_to, gather_from, all_gather, reduce_scatter])
def test_a_dim_out_of_range(function):
    with pytest.raises(IndexError, match=r"dim 2 is out of range for a tensor of shape \(4, 6\)"):
        Cluster(2).run(lambda group: function(torch.ones(4, 6, requires_grad=True), group, 2))


def test_a_dim_out_of_range_in_all_to_all():
    with pytest.raises(IndexError, match=r"all_to_all on rank 0 .* dim -3 is out of range"):
        Cluster(2).run(lambda group: all_to_all(torch.ones(4, 6, requires_grad=True), group, -3, 0))


CALLS = {
    "copy_to": lambda x, group: copy_to(x, group),
    "reduce_from": lambda x, group: reduce_from(x, group),
    "scatter_to": lambda x, group: scatter_to(x, group, 0),
    "gather_from": lambda x, group: gather_from(x, group, 0),
    "all_gather": lambda x, group: all_gather(x, group, 0),
    "reduce_scatter": lambda x, group: reduce_scatter(x, group, 0),
    "all_to_all": lambda x, group: all_to_all(x, group, 0, 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_derivative_is_refused_rather_than_wrong(name):
    def program(group):
        x = torch.ones(4, 4, requires_grad=True)
        (grad,) = torch.autograd.grad(CALLS[name](x, group).square().sum(), x, create_graph=True)
        torch.autograd.grad(grad.sum(), x, allow_unused=True)  # it never comes to x, and would say nothing

    with pytest.raises(RuntimeError, match="second derivatives would be zero"):
        Cluster(2).run(program)


@pytest.mark.parametrize("name", CALLS)
def test_the_input_is_not_written_to(name):
    def program(group):
        x = torch.full((4, 4), group.rank + 1.0, requires_grad=True)
        y = CALLS[name](x, group)
        (2 * y).sum().backward()
        assert torch.equal(x, torch.full((4, 4), group.rank + 1.0))

    Cluster(2).run(program)
