"""Forward and gradient of every conjugate function equal those of one device, in float64, for any shape and size.

Each test is a small program whose meaning on one device is known. The weights `w` make every element count differently.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib import (
    all_gather,
    all_to_all,
    copy_to,
    gather_from,
    reduce_from,
    reduce_scatter,
    scatter_to,
    shard,
    unshard,
)
from lib.devices import Cluster

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3)  # shorter than the devices are many: some hold nothing
SIZES = st.integers(1, 6)
SEEDS = st.integers(0, 10**6)


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def random(*shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def gradient(function, *inputs):
    """The value of `function(*inputs)`, a single number, and its gradients: what one device computes."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    y.backward()
    return y.detach(), [x.grad for x in leaves]


@st.composite
def sharded(draw):
    shape = draw(SHAPES)
    return draw(SIZES), shape, draw(st.integers(-len(shape), len(shape) - 1)), draw(SEEDS)


@given(sharded())
def test_copy_to_then_reduce_from(case):
    """f and g round a sharded region: each device squares with its own weights, the results are summed."""
    size, shape, _, seed = case
    x, w = random(shape, [size, *shape], seed=seed)

    def program(group):
        def region(x):
            return reduce_from((copy_to(x, group) * w[group.rank]).sin(), group).square().sum()

        return gradient(region, x)

    expected, (grad,) = gradient(lambda x: (x * w).sin().sum(0).square().sum(), x)
    for y, (own,) in Cluster(size).run(program):
        assert close(y, expected)
        assert close(own, grad)


@given(sharded())
def test_scatter_to_then_gather_from(case):
    """Each device works on its slice; all come together, and the rest is replicated."""
    size, shape, dim, seed = case
    x, w = random(shape, shape, seed=seed)

    def program(group):
        def region(x):
            y = scatter_to(x, group, dim) * shard(w, group, dim)
            return gather_from(y.sin(), group, dim).square().sum()

        return gradient(region, x)

    expected, (grad,) = gradient(lambda x: (x * w).sin().square().sum(), x)
    for y, (own,) in Cluster(size).run(program):
        assert close(y, expected)
        assert close(own, grad)


@given(sharded())
def test_all_gather_then_reduce_scatter(case):
    """Sequence parallelism: sharded outside, whole inside, where each device has weights of its own."""
    size, shape, dim, seed = case
    x, w = random(shape, [size, *shape], seed=seed)

    def program(group):
        def region(piece):
            y = (all_gather(piece, group, dim) * w[group.rank]).sin()
            z = reduce_scatter(y, group, dim).square()
            return reduce_from(z.sum(), group)

        return gradient(region, shard(x, group, dim))

    expected, (grad,) = gradient(lambda x: (x * w).sin().sum(0).square().sum(), x)
    outputs = Cluster(size).run(program)
    assert all(close(y, expected) for y, _ in outputs)
    assert close(unshard([own for _, (own,) in outputs], dim), grad)


@given(sharded(), st.data())
def test_all_to_all_there(case, data):
    """Sharded along one dim, then along another: the softmax along the first needs all of it on one device."""
    size, shape, _, seed = case
    shape = shape if len(shape) > 1 else [*shape, 5]
    concat_dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    split_dim = data.draw(st.integers(-len(shape), len(shape) - 1).filter(lambda d: (d - concat_dim) % len(shape)))
    x, w = random(shape, shape, seed=seed)

    def program(group):
        def region(piece):
            y = all_to_all(piece, group, split_dim, concat_dim).softmax(concat_dim) * shard(w, group, split_dim)
            return reduce_from(y.sum(), group)

        return gradient(region, shard(x, group, concat_dim))

    expected, (grad,) = gradient(lambda x: (x.softmax(concat_dim) * w).sum(), x)
    outputs = Cluster(size).run(program)
    assert all(close(y, expected) for y, _ in outputs)
    assert close(unshard([own for _, (own,) in outputs], concat_dim), grad)


VERB_OF = {  # function: (verb forward, verb backward)
    "copy_to": (None, "all_reduce"),
    "reduce_from": ("all_reduce", None),
    "scatter_to": (None, "all_gather"),
    "gather_from": ("all_gather", None),
    "all_gather": ("all_gather", "reduce_scatter"),
    "reduce_scatter": ("reduce_scatter", "all_gather"),
    "all_to_all": ("all_to_all", "all_to_all"),
}
CALLS = {
    "copy_to": lambda x, group: copy_to(x, group),
    "reduce_from": lambda x, group: reduce_from(x, group),
    "scatter_to": lambda x, group: scatter_to(x, group, 0),
    "gather_from": lambda x, group: gather_from(x, group, 0),
    "all_gather": lambda x, group: all_gather(x, group, 0),
    "reduce_scatter": lambda x, group: reduce_scatter(x, group, 0),
    "all_to_all": lambda x, group: all_to_all(x, group, 0, 1),
}


def charged(call, backward):
    """The verbs that one device was charged for."""
    cluster = Cluster(2)

    def program(group):
        x = torch.ones(4, 4, requires_grad=True)
        y = call(x, group)
        if backward:
            y.sum().backward()

    cluster.run(program)
    return [verb for _, verb, count in cluster.meters.rows()[: len(cluster.meters.verbs())] for _ in range(count.calls)]


@pytest.mark.parametrize("name", VERB_OF)
def test_each_costs_what_the_table_says(name):
    forward, backward = VERB_OF[name]
    assert charged(CALLS[name], backward=False) == [verb for verb in [forward] if verb]
    assert charged(CALLS[name], backward=True) == sorted(verb for verb in [forward, backward] if verb)


def test_on_one_device_each_is_the_identity():
    def program(group):
        for name, call in CALLS.items():
            x = torch.randn(3, 4, requires_grad=True)
            y = call(x, group)
            upstream = torch.randn(3, 4)
            y.backward(upstream)
            assert torch.equal(y, x), name
            assert torch.equal(x.grad, upstream), name

    Cluster(1).run(program)


def test_the_slice_that_scatter_to_gives_is_contiguous():
    assert Cluster(2).run(lambda group: scatter_to(torch.ones(4, 6), group, 1).is_contiguous()) == [True, True]


def test_gather_from_would_count_a_sharded_region_once_and_all_gather_counts_it_as_often_as_it_is_used():
    def program(group, gather):
        x = torch.ones(1, requires_grad=True)
        y = gather(x, group, 0)
        reduce_from((y * (group.rank + 1)).sum(), group).backward()  # each device uses the whole with its own weight
        return float(x.grad)

    assert Cluster(2).run(program, all_gather) == [3.0, 3.0]  # 1 + 2: right
    assert Cluster(2).run(program, gather_from) == [1.0, 2.0]  # its own weight only
