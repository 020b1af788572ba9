"""Second derivatives of functions with a backward of their own: refused, where PyTorch would give zeros."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import lib
from lib import (
    Cluster,
    FullySharded,
    OverlappedColumnLinear,
    ParallelMLP,
    RingAttention,
    attend_blocks,
    vocab_parallel_cross_entropy,
    whole_parameters,
)
from lib.parallel.context.blocks import Block

X = torch.linspace(-1, 1, 16, dtype=torch.float64).view(2, 2, 4).sin()


def test_every_function_with_a_backward_of_its_own_is_marked():
    """A new one without the mark would be silent."""
    folder = Path(lib.__file__).parent / "parallel"
    found = 0
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ClassDef) or [getattr(base, "id", "") for base in node.bases] != ["Function"]:
                continue
            (backward,) = (part for part in node.body if getattr(part, "name", "") == "backward")
            marks = [getattr(mark, "id", "") for mark in backward.decorator_list]
            assert "first_order" in marks, f"{file.name}: {node.name}.backward"
            found += 1
    assert found > 10


def of_mlp(group, x):
    return ParallelMLP(4, group).double()(x)


def of_overlapped(group, x):
    return OverlappedColumnLinear(4, 4, group).double()(x)


def of_loss(group, x):
    targets = torch.zeros(2, 2, dtype=torch.long)
    return vocab_parallel_cross_entropy(x, targets, group, vocabulary=4 * group.size).sum()


def of_blocks(group, x):
    return attend_blocks(x[None], x[None], x[None], (Block(slice(0, 2), slice(0, 2), "all"),))


def of_ring(group, x):
    return RingAttention(group, 2 * group.size, "contiguous")(x[None], x[None], x[None])


def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def sharded(group):
    model = dense()
    FullySharded(model, group, layers=[model[0], model[2]])
    return model


PROGRAMS = [of_mlp, of_overlapped, of_loss, of_blocks, of_ring]


@pytest.mark.parametrize("make", PROGRAMS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("size", [1, 2])
def test_a_penalty_on_gradients_is_not_forgotten(make, size):
    """The gradient of the loss alone would come out, as if nothing were punished."""

    def program(group):
        torch.manual_seed(0)
        x = X.clone().requires_grad_()
        loss = make(group, x).sum()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(loss + grad.square().sum(), x)

    with pytest.raises(RuntimeError, match="second derivatives would be zero"):
        Cluster(size).run(program)


def test_what_looks_at_second_derivatives_is_refused_too():
    def program(group):
        return torch.autograd.functional.hvp(lambda x: of_mlp(group, x).square().sum(), X, X)

    with pytest.raises(RuntimeError, match="the backward of (CopyTo|ReduceFrom) has no backward of its own"):
        Cluster(2).run(program)


def test_a_penalty_on_the_gradients_of_pieces():
    def program(group):
        model = sharded(group)
        model(X).square().sum().backward(create_graph=True)

    with pytest.raises(RuntimeError, match="the backward of Gather has no backward of its own"):
        Cluster(2).run(program)


def test_a_penalty_on_the_gradient_of_the_input_is_right_with_pieces():
    """As of a WGAN: nothing is summed over devices on the way to the input, so nothing is missing on the way back."""

    def step(model):
        x = X.clone().requires_grad_()
        loss = model(x).square().sum()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + grad.square().sum()).backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()
        return model

    expected = dict(step(dense()).named_parameters())
    for found in Cluster(2).run(lambda group: whole_parameters(step(sharded(group)))):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value.detach(), rtol=0, atol=1e-12)
