"""With a clock, a backward is handed the very parameters that its forward has saved; and what counts as one."""

import pytest
import torch
from torch import nn
from torch.autograd import Function

from lib.devices import Cluster


class SetsGrad(Function):
    """A product whose backward writes the weight's gradient itself, as deferred weight gradients do."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        w.grad = grad.detach().T @ x
        return grad @ w, None


@pytest.mark.parametrize("hardware", [None, "H100"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_gradient_that_a_backward_sets_arrives(hardware, wrapped):
    torch.manual_seed(0)
    x, start = torch.randn(3, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)

    def program(group):
        w = nn.Parameter(start.clone()) if wrapped else start.clone().requires_grad_()
        same = []

        class Looks(SetsGrad):
            @staticmethod
            def backward(ctx, grad):
                same.append(ctx.saved_tensors[1] is w)
                return SetsGrad.backward(ctx, grad)

        Looks.apply(x.clone().requires_grad_(), w).sum().backward()
        return w.grad, same

    for grad, same in Cluster(2, hardware=hardware).run(program):
        assert same == [True]
        assert torch.equal(grad, torch.ones(3, 2, dtype=torch.float64).T @ x)


def test_pytorch_is_left_as_it_was():
    before = dict(vars(torch.autograd.function.BackwardCFunction))
    Cluster(1, hardware="H100").run(lambda group: None)
    assert dict(vars(torch.autograd.function.BackwardCFunction)) == before


def test_what_is_cut_loose_from_a_graph_is_no_parameter():
    def program(group):
        weight = nn.Parameter(torch.randn(256, 256))
        y = torch.randn(256, 256) @ weight
        cut = y.detach().requires_grad_()  # what a pipeline stage or a checkpoint begins with
        (cut * 2).sum().backward()
        y.backward(cut.grad)
        return weight

    cluster = Cluster(1, hardware="H100")
    cluster.run(program)
    assert cluster.trace.peak(0, "parameters") == 256 * 256 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_causal_fused_attention_is_charged_for_half(dtype):
    def flops(causal):
        def program(group):
            q, k, v = (torch.randn(2, 3, 64, 16, dtype=dtype, requires_grad=True) for _ in range(3))
            nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).sum().backward()

        cluster = Cluster(1, hardware="H100")
        cluster.run(program)
        return cluster.trace.flops(0)

    whole = 2 * 3 * (2 + 5) * 2 * 64 * 64 * 16  # 2 products forward, 5 backward (the scores are made anew)
    assert flops(False) == whole
    assert flops(True) == whole // 2


def test_what_is_received_and_then_requires_grad_is_no_parameter():
    def program(group):
        if group.rank == 0:
            group.send(torch.randn(256, 256), 1)
            return
        x = group.recv(0).requires_grad_()
        (x * 2).sum().backward()

    cluster = Cluster(2, hardware="H100")
    cluster.run(program)
    assert cluster.trace.peak(1, "parameters") == 0
    assert cluster.trace.peak(1, "buffers") >= 256 * 256 * 4
