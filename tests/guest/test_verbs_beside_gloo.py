"""Every way of talking that torch.distributed has on gloo: real processes and simulated devices, equal to the bit."""

import pytest
import torch
import torch.distributed as dist
from guest import verb_rows
from guest.beside_gloo import by_devices, compare

# Programs still say many a name that PyTorch has given up.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("row", verb_rows.ROWS, ids=lambda row: row.__name__)
def test_row(worlds, size, row):
    compare(worlds, size, row)


def more_than_gloo():
    rank, size = dist.get_rank(), dist.get_world_size()
    mean, weighed, stacked, down = torch.tensor([rank, 5.0]), torch.ones(2), torch.empty(size, 2), torch.empty(2)
    dist.all_reduce(mean, dist.ReduceOp.AVG)
    dist.all_reduce(weighed, dist._make_nccl_premul_sum(rank + 1.0))
    dist.all_gather_into_tensor(stacked, torch.tensor([rank, -rank]).float())
    dist.reduce_scatter_tensor(down, torch.arange(2.0 * size).view(size, 2), dist.ReduceOp.AVG)
    outs = [torch.empty(1 + rank + j) for j in range(size)]
    dist.all_to_all(outs, [torch.full((1 + rank + j,), 10.0 * rank + j) for j in range(size)])
    everything = [torch.empty(1 + j) for j in range(size)]
    dist.all_gather(everything, torch.full((1 + rank,), 1.0 * rank))
    outs += everything
    pair = dist.new_group([rank - rank % 2, rank - rank % 2 + 1], use_local_synchronization=True)
    x = torch.tensor([1.0 * rank])
    dist.all_reduce(x, group=pair)
    return mean, weighed, stacked, down, [out.tolist() for out in outs], x.item()


def test_what_nccl_has_and_gloo_has_not():
    size = 4
    for rank, (mean, weighed, stacked, down, outs, x) in enumerate(by_devices(size, more_than_gloo)):
        assert mean.tolist() == [1.5, 5.0]
        assert weighed.tolist() == [10.0, 10.0]
        assert stacked.tolist() == [[r, -r] for r in range(size)]
        assert down.tolist() == [2 * rank, 2 * rank + 1]
        assert outs[:size] == [[10 * r + rank] * (1 + rank + r) for r in range(size)]
        assert outs[size:] == [[r] * (1 + r) for r in range(size)]
        assert x == [1, 5][rank // 2]
