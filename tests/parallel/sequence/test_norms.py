"""Norms of this device's own tokens: whatever parameters they have or lack, equal to one device."""

import pytest
import torch
from torch import nn

from lib import Cluster, SequenceLayerNorm, SequenceRMSNorm, Shard, equal_to_one_device, shard

X = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
KINDS = {
    "LayerNorm": lambda group: SequenceLayerNorm(4, group),
    "no bias": lambda group: SequenceLayerNorm(4, group, bias=False),
    "another eps": lambda group: SequenceLayerNorm(4, group, 0.1),
    "no parameters": lambda group: SequenceLayerNorm(4, group, elementwise_affine=False),
    "RMSNorm": lambda group: SequenceRMSNorm(4, group),
    "RMSNorm, eps": lambda group: SequenceRMSNorm(4, group, eps=0.1),
    "RMSNorm, no parameters": lambda group: SequenceRMSNorm(4, group, elementwise_affine=False),
}


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_one_device(kind, devices):
    found = equal_to_one_device(KINDS[kind], X, devices=devices, cut=Shard(1), output=Shard(1))
    assert found, str(found)


@pytest.mark.parametrize(
    ("kind", "plain"), [("RMSNorm, eps", nn.RMSNorm(4, 0.1)), ("no bias", nn.LayerNorm(4, bias=False))]
)
def test_equal_to_pytorchs(kind, plain):
    plain.double()
    with torch.no_grad():
        plain.weight.normal_()
    assert equal_to_one_device(KINDS[kind], X, devices=3, cut=Shard(1), output=Shard(1), against=plain)


def test_a_bias_taken_away_and_frozen_parameters():
    def program(group):
        norm = SequenceLayerNorm(4, group)
        norm.bias = None
        norm.requires_grad_(False)
        x = shard(X, group, 1).clone().requires_grad_()
        norm(x).square().sum().backward()
        return x.grad.shape, norm.weight.grad

    assert Cluster(2).run(program) == [((2, 3, 4), None)] * 2
