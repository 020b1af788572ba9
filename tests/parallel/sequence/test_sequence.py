"""Sequence parallelism: the gathered product, and LayerNorm of one's own tokens."""

import pytest
import torch
from parallel.dense_transformer import (  # noqa: F401
    LENGTH,
    assert_close,
    charged,
    double,
    refuses,
)
from torch import nn
from torch.nn import functional as F

from lib import (
    SequenceColumnLinear,
    SequenceLayerNorm,
    SequenceRowLinear,
    all_gather,
    gather_linear,
    shard,
)
from lib.devices import Cluster, Hardware, Link

N_IN, N_OUT = 6, 4


def plain(x, weight, bias, group, dim):
    """What `gather_linear` stands for; autograd keeps the whole gathered x."""
    return F.linear(all_gather(x, group, dim), weight, bias)


def outputs_and_gradients(group, product, x, weight, bias, dim, upstream):
    mine = shard(x, group, dim).clone().requires_grad_()
    weight, bias = weight + group.rank, None if bias is None else bias + group.rank
    leaves = [mine, *(t.requires_grad_() for t in (weight, bias) if t is not None)]
    y = product(mine, weight, bias, group, dim)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream[group.rank])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "dim"), [((7,), 0), ((2, 7), 1), ((7, 2), 0), ((2, 7), -2), ((2, 7, 3), 1)])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_equals_the_gather_and_the_product_one_after_the_other(size, shape, dim, bias):
    x, weight = torch.randn(*shape, N_IN), torch.randn(N_OUT, N_IN)
    arguments = x, weight, torch.randn(N_OUT) if bias else None, dim, torch.randn(size, *shape, N_OUT)
    one = Cluster(size).run(outputs_and_gradients, gather_linear, *arguments)
    other = Cluster(size).run(outputs_and_gradients, plain, *arguments)
    for rank, (mine, expected) in enumerate(zip(one, other, strict=True)):
        for number, (a, b) in enumerate(zip(mine, expected, strict=True)):
            assert_close(a, b, (rank, number))


def kept_for_the_backward(product):
    """The shapes that autograd keeps on each of 4 devices."""

    def program(group):
        kept, x = [], torch.ones(2, 2, N_IN, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)), lambda t: t):
            product(x, torch.ones(N_OUT, N_IN, requires_grad=True), None, group, 1)
        return sorted(kept)

    return Cluster(4).run(program)


def test_it_keeps_its_own_piece_and_not_what_it_gathered():
    assert kept_for_the_backward(gather_linear) == [[(2, 2, N_IN), (N_OUT, N_IN)]] * 4
    assert kept_for_the_backward(plain) != kept_for_the_backward(gather_linear)


TRIP = 3 * 2 * 8 * N_IN * 8 // 4  # bytes of (2, 8, in) once round a ring of 4


@pytest.mark.parametrize(
    ("needed", "backward"),
    [
        ("x weight bias", {"all_gather": (2, 2 * TRIP), "reduce_scatter": (1, TRIP)}),
        ("x", {"all_gather": (1, TRIP), "reduce_scatter": (1, TRIP)}),
        ("weight", {"all_gather": (2, 2 * TRIP)}),
        ("bias", {"all_gather": (1, TRIP)}),
    ],
    ids=str,
)
def test_it_sends_what_the_gradients_that_are_wanted_need(needed, backward):
    cluster = Cluster(4)

    def program(group):
        leaves = {"x": torch.randn(2, 2, N_IN), "weight": torch.randn(N_OUT, N_IN), "bias": torch.randn(N_OUT)}
        for name in needed.split():
            leaves[name].requires_grad_()
        gather_linear(*leaves.values(), group, 1).sum().backward()
        return {name for name, leaf in leaves.items() if leaf.grad is not None}

    assert cluster.run(program) == [set(needed.split())] * 4
    assert charged(cluster) == backward


def exposed(product):
    """The share of the communication in the backward during which device 0 does not compute."""
    cluster = Cluster(4, hardware=Hardware("slow", 1e9, 1e15, 1e9, Link(1e-6, 1e9)))

    def program(group):
        x, weight = torch.ones(16, 64, requires_grad=True), torch.ones(256, 64, requires_grad=True)
        y = product(x, weight, None, group, 0)
        y.backward(torch.ones_like(y))

    cluster.run(program)
    in_forward, *in_backward = [e for e in cluster.trace.events if e.rank == 0 and e.kind == "communication"]
    assert len(in_backward) == (2 if product is gather_linear else 1)
    busy = [(e.start, e.end) for e in cluster.trace.events if e.rank == 0 and e.kind == "compute"]
    hidden = sum(max(0, min(e.end, end) - max(e.start, start)) for e in in_backward for start, end in busy)
    return 1 - hidden / sum(e.seconds for e in in_backward)


def test_its_communication_runs_beside_the_products():
    assert exposed(gather_linear) == pytest.approx(0, abs=1e-9)
    assert exposed(plain) == pytest.approx(1, abs=1e-9)


def test_pieces_that_do_not_follow_the_rule():
    fragments = [
        "gather_linear on rank 1 of 2: this device brought 2 of 3 along dim -2, but the sharding rule gives it 1",
        "Cut the tensor with shard(x, group, dim=-2)",
    ]
    with pytest.raises(ValueError) as error:
        Cluster(2).run(lambda g: SequenceColumnLinear(4, 6, g)(torch.ones(2, 1 + g.rank, 4)))
    assert all(fragment in str(error.value) for fragment in fragments)


def test_a_second_derivative_is_refused_rather_than_wrong():
    def program(group):
        x = torch.ones(2, 3, requires_grad=True)
        y = gather_linear(x, torch.ones(2, 3), None, group, 0)
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        torch.autograd.grad(grad.sum(), x, allow_unused=True)  # it never comes to x, and would say nothing

    with pytest.raises(RuntimeError, match="second derivatives would be zero"):
        Cluster(2).run(program)


@pytest.mark.parametrize("bias", [True, False])
def test_the_bias_of_the_row_layer_is_added_once_and_its_gradient_is_whole(bias):
    dense, x, upstream = nn.Linear(8, 3, bias=bias), torch.randn(2, LENGTH, 8), torch.randn(2, LENGTH, 3)
    dense(x).backward(upstream)

    def program(group):
        row = SequenceRowLinear.from_dense(dense, group)
        y = row(shard(x, group, -1))
        y.backward(shard(upstream, group, 1))
        return y.detach(), None if row.bias is None else row.bias.grad

    for rank, (y, grad) in enumerate(Cluster(4).run(program)):
        assert_close(y, dense(x).detach().tensor_split(4, 1)[rank], rank)
        assert (grad is None) == (not bias)
        if bias:
            assert_close(grad, dense.bias.grad, rank)


# ---- LayerNorm ----


def norms(size, make, x, upstream):
    def program(group):
        norm = make(group)
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(1, 2, len(norm.weight)))
            norm.bias.copy_(torch.linspace(0, 1, len(norm.bias)))
        mine = shard(x, group, 1).clone().requires_grad_()
        y = norm(mine)
        y.backward(shard(upstream, group, 1))
        return y.detach(), mine.grad, norm.weight.grad, norm.bias.grad

    return Cluster(size).run(program)


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_norm_of_own_tokens_has_the_gradients_of_all(size, eps):
    x, upstream = torch.randn(2, LENGTH, N_IN), torch.randn(2, LENGTH, N_IN)
    ((y, x_grad, *whole),) = norms(1, lambda group: nn.LayerNorm(N_IN, eps), x, upstream)
    options = {} if eps == 1e-5 else {"eps": eps}
    for rank, mine in enumerate(norms(size, lambda group: SequenceLayerNorm(N_IN, group, **options), x, upstream)):
        pieces = [t.tensor_split(size, 1)[rank] for t in (y, x_grad)]
        for number, (a, b) in enumerate(zip(mine, [*pieces, *whole], strict=True)):
            assert_close(a, b, (rank, number))


def test_without_f_the_replicas_get_different_gradients_and_nobody_complains():
    x, upstream = torch.randn(2, 8, N_IN), torch.randn(2, 8, N_IN)
    right = norms(4, lambda group: SequenceLayerNorm(N_IN, group), x, upstream)
    wrong = norms(4, lambda group: nn.LayerNorm(N_IN), x, upstream)
    for number in (2, 3):
        assert all(torch.equal(mine[number], right[0][number]) for mine in right)
        assert all(not torch.allclose(mine[number], wrong[0][number]) for mine in wrong[1:])
        assert_close(sum(mine[number] for mine in wrong), right[0][number], "the parts of one sum")


def test_the_norm_sends_its_two_small_gradients_and_nothing_forward():
    cluster = Cluster(4)
    cluster.run(lambda g: SequenceLayerNorm(N_IN, g)(torch.ones(2, 3, N_IN)))
    assert charged(cluster) == {}
    cluster.run(lambda g: SequenceLayerNorm(8, g)(torch.ones(2, 3, 8)).sum().backward())
    assert charged(cluster) == {"all_reduce": (2, 2 * 2 * 3 * 8 * 8 // 4)}


def test_a_frozen_norm_sends_nothing():
    cluster = Cluster(4)

    def program(group):
        x = torch.ones(2, 3, N_IN, requires_grad=True)
        SequenceLayerNorm(N_IN, group).requires_grad_(False)(x).sum().backward()
        return x.grad is not None

    assert all(cluster.run(program))
    assert charged(cluster) == {}
