"""Column- and row-parallel layers equal the dense layer: outputs and all gradients, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lib import ColumnParallelLinear, RowParallelLinear, shard, unshard
from lib.devices import Cluster

FEATURES = st.integers(1, 9)
SIZES = st.integers(1, 6)  # more devices than features: some hold nothing
BATCHES = st.sampled_from([(3,), (2, 4), (2, 1, 3), ()])


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def gradients(function, x, module):
    """Output and gradients under an upstream gradient that is the same for everybody."""
    x = x.clone().requires_grad_()
    y = function(x)
    upstream = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    y.backward(upstream)
    return y.detach(), x.grad, module.weight.grad, None if module.bias is None else module.bias.grad


def run_and_compare(size, program, dense, x, weight_dim, bias_dim):
    """Every device has the dense output and input gradient; the gradients of the parameters are the shards."""
    y, x_grad, w_grad, b_grad = gradients(dense, x, dense)
    outputs = Cluster(size).run(program)
    for output in outputs:
        assert close(output[0], y)
        assert close(output[1], x_grad)
    assert close(unshard([output[2] for output in outputs], weight_dim), w_grad)
    if b_grad is not None and bias_dim is not None:
        assert close(unshard([output[3] for output in outputs], bias_dim), b_grad)
    elif b_grad is not None:
        assert all(close(output[3], b_grad) for output in outputs)
    else:
        assert all(output[3] is None for output in outputs)


@given(FEATURES, FEATURES, SIZES, BATCHES, st.booleans(), st.booleans())
def test_column_parallel(n_in, n_out, size, batch, bias, from_dense):
    torch.manual_seed(n_in)
    dense = nn.Linear(n_in, n_out, bias=bias)
    x = torch.randn(*batch, n_in)

    def program(group):
        torch.manual_seed(n_in)
        if from_dense:
            layer = ColumnParallelLinear.from_dense(dense, group, gather_output=True)
        else:
            layer = ColumnParallelLinear(n_in, n_out, group, bias=bias, gather_output=True)
        return gradients(layer, x, layer)

    run_and_compare(size, program, dense, x, weight_dim=0, bias_dim=0)


@given(FEATURES, FEATURES, SIZES, BATCHES, st.booleans(), st.booleans())
def test_row_parallel(n_in, n_out, size, batch, bias, from_dense):
    torch.manual_seed(n_in)
    dense = nn.Linear(n_in, n_out, bias=bias)
    x = torch.randn(*batch, n_in)

    def program(group):
        torch.manual_seed(n_in)
        if from_dense:
            layer = RowParallelLinear.from_dense(dense, group, scatter_input=True)
        else:
            layer = RowParallelLinear(n_in, n_out, group, bias=bias, scatter_input=True)
        return gradients(layer, x, layer)

    run_and_compare(size, program, dense, x, weight_dim=1, bias_dim=None)


@given(FEATURES, FEATURES, FEATURES, SIZES, BATCHES, st.booleans())
@settings(max_examples=30)
def test_column_then_gelu_then_row(n_in, hidden, n_out, size, batch, bias):
    """The MLP of a transformer: what the column layer leaves sharded, the row layer takes as it is."""
    torch.manual_seed(hidden)
    first, second = nn.Linear(n_in, hidden, bias=bias), nn.Linear(hidden, n_out, bias=bias)
    x = torch.randn(*batch, n_in)

    def program(group):
        torch.manual_seed(hidden)
        column = ColumnParallelLinear(n_in, hidden, group, bias=bias)
        row = RowParallelLinear(hidden, n_out, group, bias=bias)
        y, x_grad, w_grad, b_grad = gradients(lambda x: row(F.gelu(column(x))), x, row)
        return y, x_grad, w_grad, b_grad, column.weight.grad, None if column.bias is None else column.bias.grad

    run_and_compare(size, program, _Dense(first, second), x, weight_dim=1, bias_dim=None)
    outputs = Cluster(size).run(program)
    assert close(unshard([output[4] for output in outputs], 0), first.weight.grad)
    if bias:
        assert close(unshard([output[5] for output in outputs], 0), first.bias.grad)


class _Dense:
    """The dense MLP, showing the parameters of its second layer."""

    def __init__(self, first, second):
        self.first, self.second, self.weight, self.bias = first, second, second.weight, second.bias

    def __call__(self, x):
        return self.second(F.gelu(self.first(x)))


def test_without_gather_output_each_device_has_its_columns():
    dense = nn.Linear(4, 6)
    x = torch.randn(3, 4)
    outputs = Cluster(4).run(lambda group: ColumnParallelLinear.from_dense(dense, group)(x).detach())
    assert [tuple(y.shape) for y in outputs] == [(3, 2), (3, 2), (3, 1), (3, 1)]
    assert close(unshard(outputs, -1), dense(x).detach())


def test_without_scatter_input_each_device_takes_its_piece():
    dense = nn.Linear(6, 4)
    x = torch.randn(3, 6)
    outputs = Cluster(4).run(lambda g: RowParallelLinear.from_dense(dense, g)(shard(x, g, -1)).detach())
    assert all(close(y, dense(x).detach()) for y in outputs)


def test_a_few_steps_of_sgd_equal_dense_training():
    x, target = torch.randn(8, 5), torch.randn(8, 3)

    def train(make):
        torch.manual_seed(9)
        first, second = make()
        optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1, momentum=0.9)
        losses = []
        for _ in range(5):
            loss = F.mse_loss(second(F.gelu(first(x))), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses, first.weight.detach(), first.bias.detach(), second.weight.detach(), second.bias.detach()

    losses, w1, b1, w2, b2 = train(lambda: (nn.Linear(5, 7), nn.Linear(7, 3)))
    outputs = Cluster(3).run(
        lambda group: train(lambda: (ColumnParallelLinear(5, 7, group), RowParallelLinear(7, 3, group)))
    )
    assert losses[0] > losses[-1]
    for output in outputs:
        assert output[0] == pytest.approx(losses, rel=1e-12)
        assert close(output[4], b2)
    for number, (whole, dim) in enumerate([(w1, 0), (b1, 0), (w2, 1)], start=1):
        assert close(unshard([output[number] for output in outputs], dim), whole)


def test_the_bias_counts_once():
    dense = nn.Linear(4, 2)
    nn.init.zeros_(dense.weight)
    outputs = Cluster(4).run(lambda group: RowParallelLinear.from_dense(dense, group)(torch.ones(1, 1)))
    assert all(torch.equal(y[0], dense.bias) for y in outputs)
