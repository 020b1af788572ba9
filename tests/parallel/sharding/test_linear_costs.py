"""The layers communicate what their docstrings say, and nothing else."""

import pytest
import torch
from torch.nn import functional as F

from lib import ColumnParallelLinear, RowParallelLinear
from lib.devices import Cluster

SIZE, BATCH, D, H = 4, 3, 8, 16


def calls(program, backward):
    """The verbs that each device was charged for, with how often; the same on every device."""
    cluster = Cluster(SIZE)

    def run(group):
        y = program(group)
        if backward:
            y.sum().backward()

    cluster.run(run)
    counts = [{verb: cluster.meters.count(r, verb).calls for verb in cluster.meters.verbs()} for r in range(SIZE)]
    assert all(count == counts[0] for count in counts)
    return counts[0]


def x(*shape):
    return torch.ones(*shape, requires_grad=True)


PROGRAMS = {
    "column": (lambda g: ColumnParallelLinear(D, H, g)(x(BATCH, D)), {}, {"all_reduce": 1}),
    "column, gathered": (
        lambda g: ColumnParallelLinear(D, H, g, gather_output=True)(x(BATCH, D)),
        {"all_gather": 1},
        {"all_gather": 1, "all_reduce": 1},
    ),
    "row": (lambda g: RowParallelLinear(D, H, g)(x(BATCH, D // SIZE)), {"all_reduce": 1}, {"all_reduce": 1}),
    "row, scattered": (
        lambda g: RowParallelLinear(D, H, g, scatter_input=True)(x(BATCH, D)),
        {"all_reduce": 1},
        {"all_reduce": 1, "all_gather": 1},
    ),
    "mlp": (
        lambda g: RowParallelLinear(H, D, g)(F.gelu(ColumnParallelLinear(D, H, g)(x(BATCH, D)))),
        {"all_reduce": 1},
        {"all_reduce": 2},
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_calls(name):
    program, forward, both = PROGRAMS[name]
    assert calls(program, backward=False) == forward
    assert calls(program, backward=True) == both


def test_the_mlp_moves_the_input_s_gradient_and_the_output_and_not_the_hidden_layer():
    cluster = Cluster(SIZE)

    def program(group):
        PROGRAMS["mlp"][0](group).sum().backward()

    cluster.run(program)
    whole = BATCH * D * 4
    assert cluster.meters.count(0).bytes_sent == 2 * (2 * (SIZE - 1) * whole // SIZE)


def test_the_layer_s_own_input_needs_no_gradient():
    def program(group):
        PROGRAMS["mlp"][0](group)
        y = ColumnParallelLinear(D, H, group)(torch.ones(BATCH, D))
        y.sum().backward()

    cluster = Cluster(SIZE)
    cluster.run(program)
    assert cluster.meters.count(0).calls == 1  # that of the MLP's forward: data needs no gradient
