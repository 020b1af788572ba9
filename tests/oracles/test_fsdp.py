"""Our ZeRO against PyTorch's, run by real processes: fully_shard (FSDP2) and ZeroRedundancyOptimizer."""

import pytest
import torch
import torch.distributed as dist
from covering import covering
from parallel.small_model import OPTIMIZERS, distance, make_batches, make_model, one_thread, weights  # noqa: F401
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from lib import (
    FullySharded,
    ShardedOptimizer,
    broadcast_parameters,
    clip_gradients,
    shard_batch,
)
from lib.devices import Cluster

SIZES = [2, 3]
# Token 0 would send some samples through a layer that the others do not use: PyTorch's must all use the same.
BATCHES = [(tokens.clamp(min=1), target) for tokens, target in make_batches([12] * 3)]


def layers_of(model):
    return [model.first, model.frozen, model.second]


def mean_loss(scores, target):
    return F.cross_entropy(scores.flatten(0, 1), target.flatten())


def with_fully_shard(optimizer, micro_batches, max_norm):
    rank, size = dist.get_rank(), dist.get_world_size()
    model = make_model()
    mesh = init_device_mesh("cpu", (size,))
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    for batch in BATCHES:
        mine = [x.tensor_split(size)[rank].chunk(micro_batches) for x in batch]
        optimizer.zero_grad()
        for tokens, target in zip(*mine, strict=True):
            (mean_loss(model(tokens), target) / micro_batches).backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
    pieces = {name: p.to_local().detach() for name, p in model.named_parameters()}
    return {name: p.full_tensor().detach() for name, p in model.named_parameters()}, pieces


def with_ours(group, optimizer, micro_batches, max_norm, stage):
    model = make_model(seed=group.rank)
    broadcast_parameters(model, group)
    if stage == 3:
        sharded = FullySharded(model, group, layers_of(model), allow_unused=True)
        zero, pieces = OPTIMIZERS[optimizer](model.parameters()), list(model.parameters())
    else:
        zero = ShardedOptimizer(model, group, OPTIMIZERS[optimizer], bucket_bytes=500)
        pieces = zero.pieces
    for batch in BATCHES:
        zero.zero_grad()
        for tokens, target in zip(*(shard_batch(x, group).chunk(micro_batches) for x in batch), strict=True):
            loss = mean_loss(model(tokens), target) / micro_batches
            if stage == 2:
                with zero.reducing(allow_unused=True):
                    loss.backward()
            else:
                loss.backward()
        if stage == 1:
            zero.reduce_gradients(allow_unused=True)
        if max_norm is not None:
            clip_gradients(pieces, group, max_norm, sharded=pieces)
        zero.step()
    return sharded.whole_parameters() if stage == 3 else weights(model)


def check_equal(simulated, real):
    start = weights(make_model())
    assert distance(real[0], start) > 0.02, "it must have learned"
    assert all(torch.equal(real[0][f"{name}.weight"], start[f"{name}.weight"]) for name in ("never", "frozen", "rare"))
    for mine, theirs in zip(simulated, real, strict=True):
        assert distance(mine, theirs) <= 1e-12


@pytest.mark.parametrize(
    ("size", "optimizer", "micro_batches", "max_norm"), covering(SIZES, list(OPTIMIZERS), [1, 2], [None, 0.1])
)
def test_steps_of_fully_shard_with_tied_frozen_and_unused_layers(worlds, size, optimizer, micro_batches, max_norm):
    arguments = optimizer, micro_batches, max_norm
    results = worlds[size].run(with_fully_shard, *arguments)
    real = [whole for whole, _ in results]
    for name, whole in real[0].items():  # theirs really is sharded
        assert sum(pieces[name].numel() for _, pieces in results) == whole.numel()
    for stage in (1, 2, 3):
        check_equal(Cluster(size).run(with_ours, *arguments, stage), real)


def with_zero_redundancy_optimizer(optimizer):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # here, since its import warns of what it uses itself

    rank, size = dist.get_rank(), dist.get_world_size()
    model = make_model()
    model.never.requires_grad_(False)
    model.rare.requires_grad_(False)
    ddp = DistributedDataParallel(model)
    zero = ZeroRedundancyOptimizer([p for p in model.parameters() if p.requires_grad], OPTIMIZERS[optimizer])
    for batch in BATCHES:
        tokens, target = (x.tensor_split(size)[rank] for x in batch)
        zero.zero_grad()
        mean_loss(ddp(tokens), target).backward()
        zero.step()
    return weights(model)


@pytest.mark.parametrize(("size", "optimizer", "stage"), covering(SIZES, list(OPTIMIZERS), [1, 2]))
def test_steps_of_the_zero_redundancy_optimizer(worlds, size, optimizer, stage):
    real = worlds[size].run(with_zero_redundancy_optimizer, optimizer)
    check_equal(Cluster(size).run(with_ours, optimizer, 1, None, stage), real)
