"""Autograd, dropout and checkpointing work inside of a device, collectives in backward included."""

import torch
from torch.utils.checkpoint import checkpoint

from lib import copy_to, reduce_from
from lib.devices import Cluster


def test_backward_within_a_device():
    def program(group):
        x = torch.full((3,), float(group.rank), requires_grad=True)
        (x**2).sum().backward()
        return x.grad.tolist()

    assert Cluster(3).run(program) == [[0.0] * 3, [2.0] * 3, [4.0] * 3]


def test_gradients_may_be_reduced_by_hand():
    def program(group):
        w = torch.ones(2, requires_grad=True)
        (w * group.rank).sum().backward()
        return group.all_reduce(w.grad).tolist()

    assert Cluster(4).run(program) == [[6.0, 6.0]] * 4


def test_a_detached_tensor_and_one_under_no_grad_are_welcome():
    def program(group):
        x = torch.ones(2, requires_grad=True)
        with torch.no_grad():
            y = group.all_reduce(x)
        return (y + group.all_reduce(x.detach())).tolist()

    assert Cluster(2).run(program) == [[4.0, 4.0]] * 2


def test_a_custom_function_may_call_verbs_in_forward_and_backward():
    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, group):
            ctx.group = group
            return group.all_reduce(x)

        @staticmethod
        def backward(ctx, grad):
            order.append(ctx.group.rank)
            return ctx.group.all_reduce(grad), None

    def program(group):
        x = torch.ones(2, requires_grad=True)
        Sum.apply(x, group).sum().backward()
        return x.grad.tolist()

    order = []
    assert Cluster(3).run(program) == [[3.0, 3.0]] * 3
    assert sorted(order) == [0, 1, 2]


def test_checkpoint_draws_the_same_dropout_again_and_repeats_its_collectives():
    def region(x, w, group):
        y = torch.dropout(copy_to(x, group) * w, 0.5, True)
        return reduce_from(y, group).square()  # its backward needs the sum, which is therefore computed again

    def program(group, remember_all):
        torch.manual_seed(5)
        x = torch.ones(40, requires_grad=True)
        w = torch.full((40,), 1.0 + group.rank, requires_grad=True)
        y = region(x, w, group) if remember_all else checkpoint(region, x, w, group, use_reentrant=False)
        torch.rand(3)  # moves the stream on between forward and backward
        y.sum().backward()
        return torch.stack([y.detach(), x.grad, w.grad])

    plain, saving = Cluster(4), Cluster(4)
    expected, outputs = plain.run(program, True), saving.run(program, False)
    assert all(torch.equal(y, z) for y, z in zip(outputs, expected, strict=True))
    assert (plain.meters.count(0).calls, saving.meters.count(0).calls) == (2, 3)
