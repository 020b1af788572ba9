"""Our data parallelism against PyTorch's DistributedDataParallel, run by real processes."""

from contextlib import contextmanager, nullcontext

import pytest
import torch.distributed as dist
from covering import covering
from parallel.small_model import OPTIMIZERS, distance, make_batches, make_model, one_thread, weights  # noqa: F401
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from lib import (
    average_gradients,
    averaging,
    broadcast_parameters,
    clip_gradients,
    shard_batch,
)
from lib.devices import Cluster

SIZES = [2, 3]
BATCHES = make_batches([12] * 5)
UNEVEN = make_batches([8, 7, 6, 5, 7])


def make(rank, unused):
    model = make_model(seed=rank)  # the first broadcast must make them alike
    if not unused:
        model.never.requires_grad_(False)
        model.rare.requires_grad_(False)
    return model


def mean_loss(scores, target):
    return F.cross_entropy(scores.flatten(0, 1), target.flatten())


def with_ddp(batches, optimizer, micro_batches, unused):
    model = make(dist.get_rank(), unused)
    ddp = DistributedDataParallel(model, find_unused_parameters=unused, bucket_cap_mb=0.0005)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    for batch in batches:
        mine = [x.tensor_split(dist.get_world_size())[dist.get_rank()].chunk(micro_batches) for x in batch]
        optimizer.zero_grad()
        for number, (tokens, target) in enumerate(zip(*mine, strict=True), start=1):
            with nullcontext() if number == micro_batches else ddp.no_sync():
                (mean_loss(ddp(tokens), target) / micro_batches).backward()
        optimizer.step()
    return weights(model)


@contextmanager
def afterward(model, group, **options):
    yield
    average_gradients(model, group, **options)


def with_ours(group, batches, optimizer, micro_batches, unused, when):
    model = make(group.rank, unused)
    broadcast_parameters(model, group)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    for batch in batches:
        *first, last = zip(*(shard_batch(x, group).chunk(micro_batches) for x in batch), strict=True)
        optimizer.zero_grad()
        for tokens, target in first:
            (mean_loss(model(tokens), target) / micro_batches).backward()
        with when(model, group, bucket_bytes=500, allow_unused=unused):
            (mean_loss(model(last[0]), last[1]) / micro_batches).backward()
        optimizer.step()
    return weights(model)


def check_equal(simulated, real):
    assert distance(real[0], weights(make_model())) > 0.05, "it must have learned"
    assert all(distance(other, real[0]) == 0 for other in real)
    for mine, theirs in zip(simulated, real, strict=True):
        assert distance(mine, theirs) <= 1e-12


@pytest.mark.parametrize(
    ("size", "optimizer", "micro_batches", "unused", "when"),
    covering(SIZES, list(OPTIMIZERS), [1, 2], [False, True], [averaging, afterward]),
)
def test_five_steps_with_tied_and_frozen_layers(worlds, size, optimizer, micro_batches, unused, when):
    arguments = BATCHES, optimizer, micro_batches, unused
    check_equal(Cluster(size).run(with_ours, *arguments, when), worlds[size].run(with_ddp, *arguments))


def uneven_and_clipped_with_ddp():
    rank, size = dist.get_rank(), dist.get_world_size()
    model = make(rank, unused=True)
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    for batch in UNEVEN:
        tokens, target = (x.tensor_split(size)[rank] for x in batch)
        optimizer.zero_grad()
        # DDP knows only the plain mean over devices: the loss carries the weight.
        (mean_loss(ddp(tokens), target) * size * len(tokens) / len(batch[0])).backward()
        clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize("size", SIZES)
def test_uneven_batches_and_clipping(worlds, size):
    def program(group):
        model = make(group.rank, unused=True)
        broadcast_parameters(model, group)
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        for batch in UNEVEN:
            tokens, target = (shard_batch(x, group) for x in batch)
            optimizer.zero_grad()
            with averaging(model, group, share=len(tokens) / len(batch[0]), allow_unused=True):
                mean_loss(model(tokens), target).backward()
            clip_gradients(model.parameters(), group, 0.5)
            optimizer.step()
        return weights(model)

    check_equal(Cluster(size).run(program), worlds[size].run(uneven_and_clipped_with_ddp))
