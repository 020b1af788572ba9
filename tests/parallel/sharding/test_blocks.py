"""Several layers whose weights lie in one, such as the gate and the up projection of a gated MLP."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib import Cluster, ColumnParallelLinear, RowParallelLinear, ShardBlocks


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_gate_and_up_in_one_weight(devices, bias):
    torch.manual_seed(0)
    fused, down = nn.Linear(6, 20, bias).double(), nn.Linear(10, 6).double()
    x = torch.randn(2, 3, 6).double()

    def gated(first, last, x):
        gate, up = first(x).chunk(2, -1)
        return last(F.silu(gate) * up)

    def program(group):
        first = ColumnParallelLinear.from_dense(fused, group, blocks=2)
        return gated(first, RowParallelLinear.from_dense(down, group), x), first.weight

    results = Cluster(devices).run(program)
    assert all(torch.allclose(y, gated(fused, down, x), rtol=0, atol=1e-12) for y, _ in results)
    assert torch.equal(ShardBlocks(2).whole([weight for _, weight in results]), fused.weight)


def test_blocks_that_cannot_be():
    with pytest.raises(ValueError, match=r"a tensor of shape \(21, 6\) is not made of 2 equal blocks"):
        Cluster(2).run(lambda group: ColumnParallelLinear(6, 21, group, blocks=2))
    with pytest.raises(ValueError, match="gather_output=True would mix the 2 blocks of different devices"):
        Cluster(2).run(lambda group: ColumnParallelLinear(6, 20, group, blocks=2, gather_output=True))
    pieces = [ShardBlocks(2).piece(torch.arange(4.0), 3, rank) for rank in range(3)]
    assert torch.equal(ShardBlocks(2).whole(pieces), torch.arange(4.0)), "one device has nothing"
