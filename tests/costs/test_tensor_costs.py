"""Data beside tensor parallelism: the closed formulas are what runs of one layer hold and send."""

import re
from dataclasses import replace

import pytest
import torch
from parallel.variants import variant

from lib import ParallelBlock, average_gradients
from lib.costs.activations import LayerShape, activation_bytes
from lib.costs.tensor import (
    data_parallel_costs,
    layer_parameters,
    tensor_parallel_costs,
)
from lib.devices import Cluster

SHAPE = LayerShape(sequence=8, batch=8, hidden=16, heads=8)


def one_step(group, data_parallel, sequence_parallel=False):
    """Forward and backward of one layer in bfloat16; returns how many parameters this device holds."""
    model = group.split(group.size) if data_parallel else group
    layer = variant(ParallelBlock, sequence_parallel)(SHAPE.hidden, SHAPE.heads, model).bfloat16()
    batch = SHAPE.batch // (group.size if data_parallel else 1)
    tokens = SHAPE.sequence // (group.size if sequence_parallel else 1)
    x = torch.ones(batch, tokens, SHAPE.hidden, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    if data_parallel:
        average_gradients(layer, group)
    return sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("way", ["data", "tensor", "sequence"])
def test_formulas_are_what_a_run_holds_and_sends(way, devices):
    if way == "data":
        costs = data_parallel_costs(SHAPE, devices)
    else:
        costs = tensor_parallel_costs(SHAPE, devices, sequence_parallel=way == "sequence")
    cluster = Cluster(devices)
    held = cluster.run(one_step, way == "data", way == "sequence")
    assert held == [costs.parameters] * devices
    sent = [cluster.meters.count(rank).bytes_sent for rank in range(devices)]
    if way == "data":  # a bucket need not be divisible by the devices, so their pieces differ by an element or two
        assert sum(sent) == costs.sent * devices
        assert sent == pytest.approx([costs.sent] * devices, abs=8)
    else:
        assert sent == [costs.sent] * devices


def test_activations_are_those_of_the_own_samples_or_of_all():
    assert data_parallel_costs(SHAPE, 4).activations == activation_bytes(replace(SHAPE, batch=2))
    assert tensor_parallel_costs(SHAPE, 4).activations == activation_bytes(SHAPE, 4)
    assert tensor_parallel_costs(SHAPE, 4, True).activations == activation_bytes(SHAPE, 4, True)
    assert tensor_parallel_costs(SHAPE, 4, True).activations == data_parallel_costs(SHAPE, 4).activations


def test_one_pays_for_parameters_and_the_other_for_activations():
    large = replace(SHAPE, batch=80)
    assert data_parallel_costs(large, 8).sent == data_parallel_costs(SHAPE, 8).sent
    assert tensor_parallel_costs(large, 8).sent == 10 * tensor_parallel_costs(SHAPE, 8).sent


def test_parameters_of_gpt2_layers():
    """The 12 layers of GPT-2 small: its 124,439,808 parameters, less the embeddings and the last LayerNorm."""
    assert 12 * layer_parameters(768) == 124_439_808 - 50257 * 768 - 1024 * 768 - 2 * 768 == 85_054_464


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=re.escape("a batch of 8 cannot be divided evenly over 3 devices")):
        data_parallel_costs(SHAPE, 3)
    with pytest.raises(ValueError, match="8 heads cannot be split over 3 devices"):
        tensor_parallel_costs(SHAPE, 3)
    with pytest.raises(ValueError, match="a sequence of 9"):
        tensor_parallel_costs(replace(SHAPE, sequence=9), 2, sequence_parallel=True)
