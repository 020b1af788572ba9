"""Wrong inputs to the layers, named before anything is sent."""

import pytest
import torch
from devices import messages
from torch import nn
from torch.nn.utils import parametrizations, prune

from lib import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
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


COMPUTED = {
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight_norm": parametrizations.weight_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}
LAYERS = {
    "column": (ColumnParallelLinear, torch.ones(3, 8)),
    "row": (RowParallelLinear, torch.ones(3, 2)),
    "embedding": (VocabParallelEmbedding, torch.tensor([[1, 2]])),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("how", COMPUTED)
def test_a_weight_that_is_computed_from_pieces(layer, how):
    """The spectral norm, say, of each device's piece is not that of the whole weight. On one device it is."""
    make, x = LAYERS[layer]
    name = make.__name__ if how == "prune" else f"Parametrized{make.__name__}"

    def program(group):
        made = make(8, 8, group)
        COMPUTED[how](made)
        made(x)

    says([f"{name} on rank 0 of 4: its weight is computed from other parameters", "piece alone"], program)


def test_a_weight_that_is_computed_on_one_device():
    def program(group):
        layer = ColumnParallelLinear(8, 8, group)
        expected = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        parametrizations.weight_norm(layer)
        expected.load_state_dict(layer.state_dict())
        return torch.equal(layer(torch.ones(3, 8)), expected(torch.ones(3, 8)))

    assert Cluster(1).run(program) == [True]
