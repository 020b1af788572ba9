"""What a step of PyTorch's own data parallelism moves, counted by the meters: in (P - 1) / P of the parameters."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lib.devices import Cluster
from lib.guest.program import guest

P = 4
MODEL = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))  # P divides all of its lengths: nothing is padded


def by_ddp(model):
    return DistributedDataParallel(model)


def by_fsdp(model, **options):
    mesh = init_device_mesh("cpu", (P,))
    for layer in model:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def by_fsdp_without_resharding(model):
    return by_fsdp(model, reshard_after_forward=False)


def train(wrap, steps):
    dist.init_process_group("gloo")
    model = wrap(copy.deepcopy(MODEL))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()


def sent(wrap, steps):
    cluster = Cluster(P)
    cluster.run(guest(train, wrap, steps))
    verbs = "all_reduce", "all_gather", "reduce_scatter"
    return [sum(cluster.meters.count(rank, verb).bytes_sent for verb in verbs) for rank in range(P)]


@pytest.mark.parametrize(("wrap", "volume"), [(by_ddp, 2), (by_fsdp, 3), (by_fsdp_without_resharding, 2)])
def test_volume_of_a_step(wrap, volume):
    parameters = sum(p.numel() * p.element_size() for p in MODEL.parameters())
    steps = [more - less for more, less in zip(sent(wrap, 2), sent(wrap, 1), strict=True)]  # without what begins
    assert steps == [volume * (P - 1) * parameters // P] * P
