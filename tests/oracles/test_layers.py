"""Our linear layers against PyTorch's own tensor parallelism, `parallelize_module`, run by real processes."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

from lib import ColumnParallelLinear, RowParallelLinear
from lib.devices import Cluster

D_IN, HIDDEN, D_OUT = 5, 24, 7  # the hidden length divides by 1, 2, 3, 4


class MLP(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.first = nn.Linear(D_IN, HIDDEN, bias=bias, dtype=torch.float64)
        self.second = nn.Linear(HIDDEN, D_OUT, bias=bias, dtype=torch.float64)

    def forward(self, x):
        return self.second(F.gelu(self.first(x)))


def results(function, x, upstream, *layers):
    """The output, and the gradients of the input and of all parameters, as this rank holds them."""
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(upstream)
    grads = [p.grad for layer in layers for p in layer.parameters()]
    return [y.detach(), x.grad, *(g.to_local() if hasattr(g, "to_local") else g for g in grads)]


def mlp_of_pytorch(model, x, upstream):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"first": ColwiseParallel(), "second": RowwiseParallel()})
    return results(model, x, upstream, model.first, model.second)


def column_of_pytorch(model, x, upstream):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"first": ColwiseParallel(output_layouts=Replicate())})
    return results(model.first, x, upstream, model.first)


def row_of_pytorch(model, x, upstream):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"second": RowwiseParallel(input_layouts=Replicate())})
    return results(model.second, x, upstream, model.second)


def equal(simulated, real):
    assert len(simulated) == len(real)
    for rank, (ours, theirs) in enumerate(zip(simulated, real, strict=True)):
        assert len(ours) == len(theirs)
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert a.shape == b.shape, (rank, number)
            assert torch.allclose(a, b, rtol=0, atol=1e-12), (rank, number)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("batch", [(4,), (2, 3)], ids=str)
def test_column_gelu_row(world, bias, batch):
    model = MLP(bias)
    x, upstream = (torch.randn(*batch, d, dtype=torch.float64) for d in (D_IN, D_OUT))

    def program(group):
        column = ColumnParallelLinear.from_dense(model.first, group)
        row = RowParallelLinear.from_dense(model.second, group)
        return results(lambda x: row(F.gelu(column(x))), x, upstream, column, row)

    equal(Cluster(world.size).run(program), world.run(mlp_of_pytorch, model, x, upstream))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_column_with_gathered_output(world, bias):
    model = MLP(bias)
    x, upstream = (torch.randn(3, d, dtype=torch.float64) for d in (D_IN, HIDDEN))

    def program(group):
        layer = ColumnParallelLinear.from_dense(model.first, group, gather_output=True)
        return results(layer, x, upstream, layer)

    equal(Cluster(world.size).run(program), world.run(column_of_pytorch, model, x, upstream))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_row_with_scattered_input(world, bias):
    model = MLP(bias)
    x, upstream = (torch.randn(3, d, dtype=torch.float64) for d in (HIDDEN, D_OUT))

    def program(group):
        layer = RowParallelLinear.from_dense(model.second, group, scatter_input=True)
        return results(layer, x, upstream, layer)

    equal(Cluster(world.size).run(program), world.run(row_of_pytorch, model, x, upstream))


class Copy(torch.autograd.Function):
    """f by hand, over torch.distributed."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class Sum(torch.autograd.Function):
    """g by hand, over torch.distributed."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad


def uneven_mlp_by_hand(w1, b1, w2, b2, x, upstream):
    rank, size = dist.get_rank(), dist.get_world_size()
    x = x.requires_grad_()
    mine = [w1.tensor_split(size)[rank], b1.tensor_split(size)[rank], w2.tensor_split(size, 1)[rank], b2]
    w1, b1, w2, b2 = (p.clone().requires_grad_() for p in mine)
    y = Sum.apply(F.linear(F.gelu(F.linear(Copy.apply(x), w1, b1)), w2)) + b2
    y.backward(upstream)
    return [y.detach(), x.grad, w1.grad, b1.grad, w2.grad, b2.grad]


@pytest.mark.parametrize("hidden", [7, 3])
def test_uneven_shards_against_plain_collectives(world, hidden):
    first = nn.Linear(D_IN, hidden, dtype=torch.float64)
    second = nn.Linear(hidden, D_OUT, dtype=torch.float64)
    x, upstream = (torch.randn(3, d, dtype=torch.float64) for d in (D_IN, D_OUT))

    def program(group):
        column, row = ColumnParallelLinear.from_dense(first, group), RowParallelLinear.from_dense(second, group)
        return results(lambda x: row(F.gelu(column(x))), x, upstream, column, row)

    parameters = [p.detach() for p in (first.weight, first.bias, second.weight, second.bias)]
    equal(Cluster(world.size).run(program), world.run(uneven_mlp_by_hand, *parameters, x, upstream))


def training_of_pytorch(model, x, target):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"first": ColwiseParallel(), "second": RowwiseParallel()})
    train(model, x, target, model.parameters())
    return [p.detach().to_local() for p in model.parameters()]


def train(model, x, target, parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(model(x), target).backward()
        optimizer.step()


def test_three_steps_of_training(world):
    model = MLP(bias=True)
    x, target = (torch.randn(3, d, dtype=torch.float64) for d in (D_IN, D_OUT))

    def program(group):
        column = ColumnParallelLinear.from_dense(model.first, group)
        row = RowParallelLinear.from_dense(model.second, group)
        parameters = [*column.parameters(), *row.parameters()]
        train(lambda x: row(F.gelu(column(x))), x, target, parameters)
        return [p.detach() for p in parameters]

    equal(Cluster(world.size).run(program), world.run(training_of_pytorch, model, x, target))
