"""A grouped GEMM and padded blocks give what the loop over experts gives."""

import pytest
import torch

from lib import GroupedExperts, PaddedExperts, padded_share
from lib.devices import Cluster
from lib.parallel.experts.grid import as_grid
from lib.parallel.experts.layer import MixtureOfExperts
from lib.parallel.experts.mlp import Experts
from lib.parallel.experts.router import RoutingRule

X, ABOVE = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(1))


def run(kind, gated, dtype, size=1):
    """Output, and the gradients of the input and of this device's experts, of a layer of 6 experts."""

    class Layer(MixtureOfExperts):
        pass

    Layer.Experts = kind

    def program(group):
        torch.manual_seed(0)
        layer = Layer(16, 32, RoutingRule(6, 2), group, gated=gated).to(dtype)
        x, above = (whole.tensor_split(group.size)[group.rank].to(dtype) for whole in (X, ABOVE))
        x.requires_grad_()
        y = layer(x)
        y.backward(above)
        return [y.detach(), x.grad, *(p.grad for p in layer.experts.parameters())]

    return Cluster(size).run(program)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_three_ways_one_result(gated, size):
    loop = run(Experts, gated, torch.float64, size)
    for kind, dtype, tolerance in ((PaddedExperts, torch.float64, 1e-12), (GroupedExperts, torch.float32, 1e-5)):
        for ours, theirs in zip(run(kind, gated, dtype, size), loop, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a.double(), b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", [GroupedExperts, PaddedExperts])
def test_an_expert_without_rows(kind):
    def program(group):
        experts = kind(16, 32, 3, as_grid(group)).float()
        y = experts(X[:7].float(), [3, 0, 4])
        y.backward(torch.ones_like(y))
        return experts.up.grad.abs().amax((1, 2)).tolist()

    first, none, last = Cluster(1).run(program)[0]
    assert none == 0 < min(first, last)


def test_float64_is_refused_with_the_types_that_are_known():
    with pytest.raises(ValueError, match="rows of torch.float64.*float32, torch.bfloat16"):
        run(GroupedExperts, False, torch.float64)


def test_what_padding_costs():
    assert padded_share([4, 4, 4]) == 1
    assert padded_share([9, 1, 2]) == 27 / 12
