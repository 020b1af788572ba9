"""Wrong inputs to the layers, named before anything is sent."""

import pytest
import torch
from devices import messages
from torch import nn

from lib import ColumnParallelLinear, RowParallelLinear
from lib.devices import Cluster


def says(fragments, program, error_type=ValueError):
    cluster = Cluster(4)
    with messages.says(error_type, *fragments):
        cluster.run(program)
    assert cluster.meters.rows() == []


def test_the_column_layer_needs_the_whole_input():
    fragments = [
        "ColumnParallelLinear(in=4, out=2 of 6, rank=0) on rank 0 of 4",
        "an input of shape (3, 1)",
        "its last dim must be 4",
        "the whole input is needed on every device",
    ]
    says(fragments, lambda group: ColumnParallelLinear(4, 6, group)(torch.ones(3, 1)))


def test_the_row_layer_needs_its_piece():
    fragments = [
        "RowParallelLinear(in=2 of 6, out=4, rank=0) on rank 0 of 4",
        "an input of shape (3, 6)",
        "its last dim must be 2",
        "for a whole input pass scatter_input=True",
    ]
    says(fragments, lambda group: RowParallelLinear(6, 4, group)(torch.ones(3, 6)))


def test_the_row_layer_that_scatters_needs_the_whole():
    fragments = ["an input of shape (3, 2)", "its last dim must be 6", "scatter_input=True cuts the whole input itself"]
    says(fragments, lambda group: RowParallelLinear(6, 4, group, scatter_input=True)(torch.ones(3, 2)))


def test_a_single_number_is_no_input():
    says(["an input of shape ()"], lambda group: ColumnParallelLinear(4, 6, group)(torch.tensor(1.0)))


@pytest.mark.parametrize("layer", [ColumnParallelLinear, RowParallelLinear])
def test_from_dense_needs_a_linear_layer(layer):
    fragments = [f"{layer.__name__}.from_dense needs an nn.Linear, not LayerNorm"]
    says(fragments, lambda group: layer.from_dense(nn.LayerNorm(4), group), TypeError)
