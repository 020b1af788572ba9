"""All stages of ZeRO take the steps of one device: the same losses and weights, in float64."""

import math
from functools import cache

import pytest
import torch
from covering import covering
from parallel.small_model import OPTIMIZERS, distance, make_batches, make_model, one_thread, train_alone, weights  # noqa: F401
from parallel.zero_training import make, train
from torch import nn
from torch.nn import functional as F

from lib import average_gradients, clip_gradients, shard_batch
from lib.devices import Cluster
from lib.parallel.data.backward import used_anywhere
from lib.parallel.zero.flat import FlatLayout
from lib.parallel.zero.fully_sharded import FullySharded
from lib.parallel.zero.optimizer import ShardedOptimizer

SIZES, STAGES = [1, 2, 3, 4], [1, 2, 3]
EPOCH = [8, 8, 8, 7]  # the last batch is uneven on 2, 3 and 4 devices
BATCHES = make_batches(2 * EPOCH)  # 8 steps: each third has a layer that nobody uses

each_size = pytest.mark.parametrize("size", SIZES)
each_stage = pytest.mark.parametrize("stage", STAGES)
each_case = pytest.mark.parametrize(("size", "stage", "optimizer"), covering(SIZES, STAGES, sorted(OPTIMIZERS)))


@cache
def alone_with(optimizer, steps, max_norm=None):
    """What one device makes of the first batches."""
    return train_alone(make_model(), optimizer, BATCHES[:steps], max_norm)


def check_equal(outputs, alone, tolerance=1e-12):
    for losses, found in outputs:
        assert losses == pytest.approx(alone[0], rel=0, abs=tolerance)
        assert distance(found, alone[1]) <= tolerance


@each_case
def test_eight_steps(size, stage, optimizer):
    alone = alone_with(optimizer, len(BATCHES))
    assert alone[0][0] > alone[0][-1] + 0.1, "the problem must be one that is learned"
    check_equal(Cluster(size).run(train, stage, optimizer, BATCHES), alone)


@each_case
def test_gradients_accumulated_over_micro_batches(size, stage, optimizer):
    batches = make_batches([8, 9, 11])
    alone = train_alone(make_model(), optimizer, batches)
    check_equal(Cluster(size).run(train, stage, optimizer, batches, micro_batches=2), alone)


@each_case
def test_clipped_by_the_norm_of_all_pieces(size, stage, optimizer):
    alone = alone_with(optimizer, 5, max_norm=0.1)
    assert distance(alone[1], alone_with(optimizer, 5)[1]) > 1e-3, "it must clip"
    check_equal(Cluster(size).run(train, stage, optimizer, BATCHES[:5], max_norm=0.1), alone)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("bucket_bytes", [0, 1000.5, math.inf])
def test_buckets_of_any_size(bucket_bytes, stage):
    found = Cluster(3).run(train, stage, "AdamW", BATCHES[:5], bucket_bytes=bucket_bytes)
    check_equal(found, alone_with("AdamW", 5))


@each_stage
def test_one_device_has_the_same_bits_as_no_library(stage):
    losses, found = Cluster(1).run(train, stage, "AdamW", BATCHES[:5])[0]
    alone = alone_with("AdamW", 5)
    assert losses == alone[0]
    assert distance(found, alone[1]) == 0


@each_stage
def test_all_devices_have_the_same_bits(stage):
    outputs = Cluster(4).run(train, stage, "AdamW", BATCHES[:5])
    assert all(distance(found, outputs[0][1]) == 0 for _, found in outputs)


@each_stage
@each_size
def test_the_gradients_of_the_pieces_are_those_of_data_parallelism(size, stage):
    """With momentum alone, a wrong factor would still train; here it shows at once."""

    def program(group):
        model = make_model()
        tokens, target = (shard_batch(x, group) for x in BATCHES[1])
        model.loss(tokens, target).backward()
        average_gradients(model, group, len(tokens) / 8, allow_unused=True)
        wanted = {name: p.grad for name, p in model.named_parameters()}

        model, zero, pieces, _ = make(group, stage, "SGD")
        loss = model.loss(tokens, target)
        if stage == 1:
            loss.backward()
            zero.reduce_gradients(len(tokens) / 8, allow_unused=True)
        elif stage == 2:
            with zero.reducing(len(tokens) / 8, allow_unused=True):
                loss.backward()
        else:
            (loss * group.size * len(tokens) / 8).backward()
        named = dict(model.named_parameters()) if stage == 3 else {p: p for p in model.parameters() if p.requires_grad}
        if stage < 3:
            assert all(p.grad is None for p in model.parameters()), "whole gradients are freed"
            named = dict(zip([n for n, p in model.named_parameters() if p.requires_grad], pieces, strict=True))
        return wanted, {name: piece.grad for name, piece in named.items()}

    outputs = Cluster(size).run(program)
    for name, grad in outputs[0][0].items():
        pieces = [mine[name] for _, mine in outputs if name in mine]
        if grad is None:
            assert all(piece is None for piece in pieces), name
        else:
            torch.testing.assert_close(torch.cat(pieces), grad.flatten(), rtol=0, atol=1e-14)


# ---- the flat layout ----


@each_size
def test_pieces_of_all_devices_are_the_tensors(size):
    shapes = [torch.Size(s) for s in [(2, 3), (), (0, 4), (5,), (1, 1, 1), (7, 2)]]
    flat = torch.arange(27)

    def program(group):
        layout = FlatLayout(shapes, group)
        begin = sum(len(x) for x in torch.tensor_split(flat, size)[: group.rank])
        mine = torch.tensor_split(flat, size)[group.rank]
        pieces = layout.pieces(mine)
        assert torch.equal(torch.cat(pieces), mine)
        assert begin == (int(mine[0]) if len(mine) else begin)
        return layout.tensors(flat), pieces

    outputs = Cluster(size).run(program)
    for number, tensor in enumerate(outputs[0][0]):
        assert tensor.shape == shapes[number]
        assert torch.equal(torch.cat([pieces[number] for _, pieces in outputs]), tensor.flatten())


@pytest.mark.parametrize("size", [5, 8])
def test_more_devices_than_elements_of_a_layer(size):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(1, 1, dtype=torch.float64), nn.Tanh(), nn.Linear(1, 1, dtype=torch.float64))

    x = torch.linspace(-1, 1, size, dtype=torch.float64)[:, None]
    alone = build()
    optimizer = OPTIMIZERS["AdamW"](alone.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(alone(x), x.sin()).backward()
        nn.utils.clip_grad_norm_(alone.parameters(), 0.01)
        optimizer.step()

    def program(group, stage):
        model, mine = build(), shard_batch(x, group)
        if stage == 3:
            sharded = FullySharded(model, group, layers=model)
            zero, pieces = OPTIMIZERS["AdamW"](model.parameters()), list(model.parameters())
        else:
            zero = ShardedOptimizer(model, group, OPTIMIZERS["AdamW"], bucket_bytes=0)
            pieces = zero.pieces
        for _ in range(3):
            zero.zero_grad()
            loss = F.mse_loss(model(mine), mine.sin())
            if stage == 2:
                with zero.reducing():
                    loss.backward()
            else:
                loss.backward()
            if stage == 1:
                zero.reduce_gradients()
            clip_gradients(pieces, group, 0.01, sharded=pieces)
            zero.step()
        return sharded.whole_parameters() if stage == 3 else weights(model)

    for stage in STAGES:
        for found in Cluster(size).run(program, stage):
            assert distance(found, weights(alone)) <= 1e-12


def test_on_256_devices_what_all_use_is_used():
    """A sum of so many flags of one byte would be 0."""
    cpu = torch.device("cpu")
    outputs = Cluster(256).run(lambda group: used_anywhere({"a": True, "b": False}, group, cpu, True, "somebody"))
    assert outputs == [{"a"}] * 256


@each_stage
def test_without_data_all_devices_use_what_this_one_uses(stage):
    def program(group):
        with torch.device("meta"):
            model = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(2)])
            x = torch.ones(1, 2)
        if stage == 3:
            FullySharded(model, group, model, allow_unused=True)
            model[0](x).sum().backward()
            pieces = list(model.parameters())
        else:
            zero = ShardedOptimizer(model, group, OPTIMIZERS["AdamW"])
            pieces = zero.pieces
            if stage == 1:
                model[0](x).sum().backward()
                zero.reduce_gradients(allow_unused=True)
            else:
                with zero.reducing(allow_unused=True):
                    model[0](x).sum().backward()
        return [p.grad is not None for p in pieces]

    assert Cluster(2).run(program) == [[True, False]] * 2
