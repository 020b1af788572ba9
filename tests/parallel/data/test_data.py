"""Training on P devices equals training on one: the same losses and weights, in float64, step after step."""

import math
from functools import cache

import pytest
import torch
from covering import covering
from parallel.small_model import OPTIMIZERS, distance, make_batches, make_model, one_thread, train_alone, weights  # noqa: F401
from torch import nn
from torch.nn import functional as F

from lib import (
    average_gradients,
    averaging,
    broadcast_parameters,
    check_same_parameters,
    clip_gradients,
    different_random,
    shard_batch,
)
from lib.devices import Cluster, Mesh

SIZES = [1, 2, 3, 4]
EPOCH = [8, 8, 8, 7]  # the last batch is uneven on 2, 3 and 4 devices
BATCHES = make_batches(2 * EPOCH)  # 8 steps


def train(
    group, optimizer, during, batches=BATCHES, bucket_bytes=math.inf, micro=None, max_norm=None, set_to_none=True
):
    """With `during`, gradients are averaged while the backward runs; with `micro`, samples per micro-batch."""
    model = make_model(seed=group.rank)
    broadcast_parameters(model, group)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    losses = []
    for batch, whole_target in batches:
        tokens, target = shard_batch(batch, group), shard_batch(whole_target, group)
        options = {"share": len(tokens) / len(batch), "bucket_bytes": bucket_bytes, "allow_unused": True}
        optimizer.zero_grad(set_to_none=set_to_none)
        *first, last = zip(tokens.split(micro or len(tokens)), target.split(micro or len(tokens)), strict=True)
        loss = 0.0
        for some, wanted in first:
            part = model.loss(some, wanted) * len(some) / len(tokens)
            part.backward()
            loss += part.detach()
        part = model.loss(*last) * len(last[0]) / len(tokens)
        if during:
            with averaging(model, group, **options):
                part.backward()
        else:
            part.backward()
            average_gradients(model, group, **options)
        if max_norm is not None:
            clip_gradients(model.parameters(), group, max_norm)
        optimizer.step()
        losses.append(float(group.all_reduce((loss + part.detach()) * options["share"])))
    check_same_parameters(model, group)
    return losses, weights(model)


@cache
def alone_with(optimizer, steps=None, max_norm=None):
    """What one device makes of the first batches."""
    return train_alone(make_model(), optimizer, BATCHES[:steps], max_norm)


def check_equal(outputs, alone, tolerance=1e-12):
    for losses, found in outputs:
        assert losses == pytest.approx(alone[0], rel=0, abs=tolerance)
        assert distance(found, alone[1]) <= tolerance


def test_the_data_has_samples_that_use_the_rare_layer_on_no_device_on_one_and_on_few():
    batches = make_batches(EPOCH)
    assert [int((tokens == 0).any(1).sum()) for tokens, _ in batches] == [0, 1, 1, 0]


@pytest.mark.parametrize(("size", "optimizer", "during"), covering(SIZES, list(OPTIMIZERS), [False, True]))
def test_eight_steps(size, optimizer, during):
    alone = alone_with(optimizer)
    assert alone[0][0] > alone[0][-1] + 0.1, "the problem must be one that is learned"
    check_equal(Cluster(size).run(train, optimizer, during, bucket_bytes=500), alone)


@pytest.mark.parametrize("during", [False, True], ids=["after", "during"])
@pytest.mark.parametrize("bucket_bytes", [0, 300, 1000.5, 1e6, math.inf])
def test_buckets_of_any_size(bucket_bytes, during):
    check_equal(Cluster(3).run(train, "SGD", during, BATCHES[:5], bucket_bytes), alone_with("SGD", 5))


@pytest.mark.parametrize(("size", "optimizer", "during"), covering(SIZES, list(OPTIMIZERS), [False, True]))
def test_gradients_accumulated_over_micro_batches(size, optimizer, during):
    found = Cluster(size).run(train, optimizer, during, BATCHES[:6], bucket_bytes=500, micro=1)
    check_equal(found, alone_with(optimizer, 6))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("size", SIZES)
def test_clipped(size, optimizer):
    alone = alone_with(optimizer, 6, max_norm=0.1)
    assert distance(alone[1], alone_with(optimizer, 6)[1]) > 1e-3, "it must clip"
    check_equal(Cluster(size).run(train, optimizer, True, BATCHES[:6], max_norm=0.1), alone)


@pytest.mark.parametrize("during", [False, True], ids=["after", "during"])
def test_gradients_that_are_set_to_zero_are_added_to_in_place(during):
    batches = make_batches([4, 4, 4])[1:]  # zeros are not None: all layers must be used, or the zeros are stepped with
    model = make_model()
    alone = train_alone(model, "SGD", batches)

    def program(group):
        return train(group, "SGD", during, batches, set_to_none=False)

    check_equal(Cluster(2).run(program), alone)


def test_one_device_has_the_same_bits_as_no_library():
    losses, found = Cluster(1).run(train, "AdamW", True, bucket_bytes=300)[0]
    alone = alone_with("AdamW")
    assert losses == alone[0]
    assert distance(found, alone[1]) == 0


def test_all_devices_have_the_same_bits():
    outputs = Cluster(4).run(train, "AdamW", True, bucket_bytes=300)
    assert all(distance(found, outputs[0][1]) == 0 for _, found in outputs)


def test_a_parameter_nobody_uses_stays_without_a_gradient():
    def program(group):
        model = make_model()
        tokens, target = (shard_batch(x, group) for x in BATCHES[0])  # no device meets token 0
        found = []
        for during in (False, True):
            model.zero_grad()
            if during:
                with averaging(model, group, allow_unused=True):
                    model.loss(tokens, target).backward()
            else:
                model.loss(tokens, target).backward()
                average_gradients(model, group, allow_unused=True)
            found.append({name for name, p in model.named_parameters() if p.grad is None})
        return found

    nowhere = {f"{layer}.{part}" for layer in ("never", "frozen", "rare") for part in ("weight", "bias")}
    assert Cluster(2).run(program) == [[nowhere, nowhere]] * 2


def test_on_256_devices_what_all_use_is_used():
    def program(group):
        model = nn.Linear(1, 1, bias=False)
        model(torch.full((1, 1), float(group.rank))).sum().backward()
        average_gradients(model, group, allow_unused=True)
        return float(model.weight.grad)

    assert Cluster(256).run(program) == [127.5] * 256


def test_a_gradient_of_earlier_micro_batches_is_averaged_though_the_last_one_brings_none():
    def program(group):
        model = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
        x = torch.full((1, 1), float(group.rank + 1))
        model[0](x).sum().backward()
        with averaging(model, group):
            model[1](x).sum().backward()
        return [float(p.grad) for p in model.parameters()]

    assert Cluster(3).run(program) == [[2.0, 2.0]] * 3


def test_frozen_later_and_unfrozen_again():
    def program(group):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        grads = []
        for trains in (True, False, True):
            model[0].requires_grad_(trains)
            model.zero_grad()
            with averaging(model, group):
                model(torch.full((1, 2), float(group.rank))).sum().backward()
            grads.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
        return grads

    for grads in Cluster(3).run(program):
        assert [[g is None for g in found] for found in grads] == [[False] * 4, [True, True, False, False], [False] * 4]
        assert all(torch.equal(x, y) for x, y in zip(grads[0], grads[2], strict=True))
        assert all(torch.equal(x, y) for x, y in zip(grads[0][2:], grads[1][2:], strict=True))


def test_several_dtypes_in_one_model():
    def program(group):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3).double(), nn.Linear(2, 3), nn.Linear(2, 3).bfloat16()])
        for layer in model:
            layer(torch.full((1, 2), float(group.rank), dtype=layer.weight.dtype)).sum().backward()
        average_gradients(model, group)
        return [(p.grad.dtype, p.grad.shape, p.grad.double().unique().tolist()) for p in model.parameters()]

    dtypes = [torch.float32, torch.float64, torch.float32, torch.bfloat16]
    wanted = [entry for d in dtypes for entry in [(d, torch.Size([3, 2]), [1.0]), (d, torch.Size([3]), [1.0])]]
    assert Cluster(3).run(program) == [wanted] * 3


def test_the_first_broadcast_writes_into_the_module_s_own_tensors_buffers_too():
    def program(group):
        torch.manual_seed(group.rank)
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        model[1].running_mean += group.rank + 1
        model[1].num_batches_tracked += group.rank + 5
        tensors = [*model.parameters(), *model.buffers()]
        places = [x.data_ptr() for x in tensors]
        broadcast_parameters(model, group, src=1)
        assert [x.data_ptr() for x in tensors] == places
        assert all(a is b for a, b in zip(tensors, [*model.parameters(), *model.buffers()], strict=True))
        assert all(p.requires_grad and p.is_leaf for p in model.parameters())
        return [x.detach().clone() for x in tensors]

    torch.manual_seed(1)
    right = nn.Linear(3, 2)
    outputs = Cluster(3).run(program)
    for output in outputs:
        assert torch.equal(output[0], right.weight)
        assert torch.equal(output[1], right.bias)
        assert output[4].tolist() == [2.0, 2.0]
        assert int(output[6]) == 6


def test_the_batch_is_cut_as_shard_cuts_it():
    batch = torch.arange(7 * 2 * 3).reshape(7, 2, 3)
    pieces = Cluster(4).run(lambda group: shard_batch(batch, group))
    assert [tuple(x.shape) for x in pieces] == [(2, 2, 3), (2, 2, 3), (2, 2, 3), (1, 2, 3)]
    assert torch.equal(torch.cat(pieces), batch)
    assert [len(x) for x in Cluster(7).run(lambda group: shard_batch(batch, group))] == [1] * 7


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("during", [False, True], ids=["after", "during"])
def test_gradients_that_have_a_graph_of_their_own(during):
    def program(group):
        model = nn.Linear(1, 1, bias=False)
        x = torch.full((1, 1), float(group.rank))
        if during:
            with averaging(model, group):
                model(x).square().sum().backward(create_graph=True)
        else:
            model(x).square().sum().backward(create_graph=True)
            average_gradients(model, group)
        found = float(model.weight.grad), float(2 * model.weight.detach() * (0 + 1 + 4) / 3)
        model.weight.grad = None  # PyTorch warns of the cycle
        return found

    for found, expected in Cluster(3).run(program):
        assert found == pytest.approx(expected, rel=1e-6)


# ---- dropout, and what a module holds besides parameters ----


def test_replicas_drop_different_elements_and_the_devices_of_one_replica_the_same():
    def program(group):
        mesh = Mesh(group, dp=2, tp=2)
        torch.manual_seed(0)
        with different_random(mesh.dp):
            mask = F.dropout(torch.ones(64), 0.5) > 0
        return mask, torch.rand(2)  # afterwards all stand at the same place again

    (a, after), *others = Cluster(4).run(program)
    b, c, d = (mask for mask, _ in others)
    assert torch.equal(a, b)
    assert torch.equal(c, d)
    assert not torch.equal(a, c)
    assert all(torch.equal(after, x) for _, x in others)


def test_buffers_that_differ_are_named():
    def program(group):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(2)
        check_same_parameters(norm, group)
        norm(torch.randn(4, 2) + group.rank)
        check_same_parameters(norm, group)

    with pytest.raises(ValueError, match=r"running_mean \(2,\) is not the same on all devices"):
        Cluster(2).run(program)
