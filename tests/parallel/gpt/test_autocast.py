"""Under autocast to bfloat16: types, gradients and losses are as one device's dense layers have them."""

import pytest
import torch
from parallel.variants import variant
from torch import nn
from torch.nn import functional as F

from lib import (
    GPT,
    Cluster,
    ColumnParallelLinear,
    GPTConfig,
    ParallelBlock,
    ParallelMLP,
    RowParallelLinear,
    gather_linear,
    shard,
    vocab_parallel_cross_entropy,
)

BF16 = torch.bfloat16
SEQUENCE = pytest.mark.parametrize("sequence", [False, True], ids=["TP", "TP+SP"])


def autocast(where="forward", now="forward"):
    return torch.autocast("cpu", dtype=BF16, enabled=now in where)


def layer(group, make, sequence, where="forward"):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 16)
    module = variant(make, sequence)(16, *([4] if make is ParallelBlock else []), group)
    x = (shard(x, group, 1) if sequence else x).clone().requires_grad_()
    with autocast():
        y = module(x)
    with autocast(where, "backward"):
        y.float().square().sum().backward()
    return y.dtype, x.grad, {name: p.grad for name, p in module.named_parameters()}


@SEQUENCE
@pytest.mark.parametrize("make", [ParallelBlock, ParallelMLP])
@pytest.mark.parametrize("where", ["forward", "forward and backward"])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_layers_train(make, sequence, where, devices):
    (dtype, _, right), *_ = Cluster(1).run(layer, make, False)
    for kind, x_grad, grads in Cluster(devices).run(layer, make, sequence, where):
        assert kind == dtype
        assert x_grad.dtype == torch.float32
        for name, grad in grads.items():
            assert grad.dtype == torch.float32
            if grad.shape == right[name].shape:
                assert (grad - right[name]).norm() <= 0.03 * right[name].norm(), name


def test_types_are_those_of_a_dense_linear_layer():
    def program(group):
        x = torch.randn(3, 8)
        layers = ColumnParallelLinear(8, 4, group), RowParallelLinear(8, 4, group, scatter_input=True)
        with autocast():
            return [layer(x).dtype for layer in (*layers, nn.Linear(8, 4))]

    assert Cluster(2).run(program) == [[BF16] * 3] * 2


def test_what_is_gathered_is_sent_in_bfloat16():
    def program(group, enabled):
        x, w = torch.randn(1, 4, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
        with torch.autocast("cpu", dtype=BF16, enabled=enabled):
            y = gather_linear(x, w, None, group, 1)
        y.sum().backward()

    sent = []
    for enabled in (False, True):
        cluster = Cluster(2)
        cluster.run(program, enabled)
        sent.append(cluster.meters.count(0).bytes_sent)
    assert sent[0] == 2 * sent[1]


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_the_loss_is_computed_in_float32_as_pytorchs(devices):
    torch.manual_seed(0)
    h, w, targets = torch.randn(64, 32), torch.randn(1000, 32) * 0.1, torch.randint(1000, (64,))

    def program(group):
        mine = shard(w, group, 0).clone().requires_grad_()
        with autocast():
            losses = vocab_parallel_cross_entropy(F.linear(h, mine), targets, group, 1000)
        losses.mean().backward()
        return losses.detach(), mine.grad

    dense = w.clone().requires_grad_()
    with autocast():
        right = F.cross_entropy(F.linear(h, dense), targets, reduction="none")
    right.mean().backward()
    results = Cluster(devices).run(program)
    for losses, _ in results:
        assert losses.dtype == torch.float32
        assert (losses - right).abs().max() < 1e-5
    gradient = torch.cat([grad for _, grad in results])
    assert (gradient - dense.grad).norm() < 2e-3 * dense.grad.norm()


@SEQUENCE
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_gpt_trains(sequence, devices):
    def program(group, sequence):
        torch.manual_seed(0)
        config = GPTConfig(2, 16, 4, vocabulary=50, positions=8, deviation=0.1)
        model = variant(GPT, sequence)(config, group)
        tokens = torch.randint(50, (2, 8))
        with autocast():
            loss = model(tokens, tokens)
        loss.backward()
        return loss.detach(), model.positions.weight.grad

    (right, right_grad), *_ = Cluster(1).run(program, False)
    for loss, grad in Cluster(devices).run(program, sequence):
        assert loss.dtype == torch.float32
        assert abs(loss - right) < 5e-3
        assert (grad - right_grad).norm() < 0.05 * right_grad.norm()
