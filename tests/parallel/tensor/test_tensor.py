"""The MLP under tensor and sequence parallelism equals the dense one, and sends what its docstring says."""

import pytest
import torch
from parallel.dense_transformer import (  # noqa: F401
    BATCH,
    DEVICES,
    HIDDEN,
    LENGTH,
    DenseMLP,
    assert_equals_dense,
    double,
    forward_and_backward,
    refuses,
)
from parallel.variants import variant
from torch.nn import functional as F

from lib import ColumnParallelLinear, ParallelMLP, RowParallelLinear, dense_state, shard
from lib.devices import Cluster

X = (BATCH, LENGTH, HIDDEN)


@pytest.mark.parametrize("sequence_dim", [None, 1])
@pytest.mark.parametrize("size", DEVICES)
def test_equals_the_dense_mlp(size, sequence_dim):
    assert_equals_dense(
        size, lambda g: variant(ParallelMLP, sequence_dim)(HIDDEN, g), DenseMLP(), torch.randn(X), sequence_dim
    )


@pytest.mark.parametrize("sequence_dim", [None, 1])
def test_another_inner_size_and_the_other_gelu(sequence_dim):
    dense = DenseMLP(inner=9, approximate="tanh")
    assert_equals_dense(
        3, lambda g: variant(ParallelMLP, sequence_dim)(HIDDEN, g, 9, "tanh"), dense, torch.randn(X), sequence_dim
    )


def test_the_two_gelus_differ():
    x = torch.randn(X)

    @torch.no_grad()
    def program(group):
        torch.manual_seed(3)
        exact = ParallelMLP(HIDDEN, group)(x)
        torch.manual_seed(3)
        return float((exact - ParallelMLP(HIDDEN, group, approximate="tanh")(x)).abs().max())

    assert all(1e-6 < difference < 1e-2 for difference in Cluster(2).run(program))


@pytest.mark.parametrize("shape", [(HIDDEN,), (5, HIDDEN), (2, 3, 1, HIDDEN)])
def test_any_shape_before_the_last_dim(shape):
    assert_equals_dense(4, lambda g: ParallelMLP(HIDDEN, g), DenseMLP(), torch.randn(shape))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_sequence_alone_or_behind_other_dims(dims):
    shape = (*range(2, 1 + dims), LENGTH, HIDDEN)
    dim = dims - 1
    assert_equals_dense(4, lambda g: variant(ParallelMLP, dim)(HIDDEN, g), DenseMLP(), torch.randn(shape), dim)


@pytest.mark.parametrize("size", DEVICES)
def test_initialized_as_the_shards_of_the_dense_mlp(size):
    torch.manual_seed(5)
    dense = DenseMLP()
    state = dense_state(Cluster(size).run(lambda group: (torch.manual_seed(5), ParallelMLP(HIDDEN, group))[1]))
    assert state.keys() == dense.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in dense.state_dict().items())


def test_float32():
    torch.set_default_dtype(torch.float32)
    assert_equals_dense(4, lambda g: ParallelMLP(HIDDEN, g), DenseMLP(), torch.randn(X), tolerance=1e-5)


# ---- what is sent ----


def run_mlp(sequence_dim, needs_grad=True, frozen=()):
    def run(group):
        mlp = variant(ParallelMLP, sequence_dim)(HIDDEN, group)
        for name, parameter in mlp.named_parameters():
            parameter.requires_grad_(name not in frozen)
        x = torch.ones(BATCH, 8, HIDDEN)
        return mlp((x if sequence_dim is None else shard(x, group, sequence_dim)).requires_grad_(needs_grad))

    return run


WHOLE = BATCH * 8 * HIDDEN * 8  # bytes of (batch, 8, hidden) in float64


@pytest.mark.parametrize("size", [1, 2, 4])
def test_one_all_reduce_forward_and_one_backward(size):
    once = {"all_reduce": (1, 2 * (size - 1) * WHOLE // size)}
    assert forward_and_backward(size, run_mlp(None)) == (once, once)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_an_all_gather_and_a_reduce_scatter_with_sequence_parallelism(size):
    trip = (size - 1) * WHOLE // size
    small = 2 * (size - 1) * HIDDEN * 8 // size  # the gradient of the second bias
    forward, backward = forward_and_backward(size, run_mlp(1))
    assert forward == {"all_gather": (1, trip), "reduce_scatter": (1, trip)}
    assert backward == {"all_gather": (2, 2 * trip), "reduce_scatter": (1, trip), "all_reduce": (1, small)}


def test_an_input_without_gradient_is_not_summed():
    assert forward_and_backward(4, run_mlp(None, needs_grad=False))[1] == {}


# ---- why it is cut this way ----


def test_rows_first_would_need_a_sum_before_the_gelu():
    """GeLU of a sum is not the sum of GeLUs: without an all-reduce in the middle the result is another one."""
    x, dense = torch.randn(X), DenseMLP()

    def program(group):
        with torch.no_grad():
            up, down = RowParallelLinear.from_dense(dense.up, group), ColumnParallelLinear.from_dense(dense.down, group)
            partial = F.linear(shard(x, group, -1), up.weight)  # (batch, S, inner)  Partial
            summed_late = group.all_reduce(F.gelu(partial)) + up.bias
            summed_first = F.gelu(group.all_reduce(partial) + up.bias)
            outputs = [group.all_gather(down(y), -1) for y in (summed_late, summed_first)]
            return [float((y - dense(x)).abs().max()) for y in outputs]

    for late, first in Cluster(4).run(program):
        assert first < 1e-12
        assert late > 0.01


# ---- refusals ----


def test_an_inner_size_that_does_not_divide():
    refuses(
        ["ParallelMLP: an inner size of 10 cannot be split over 4 devices"], lambda g: ParallelMLP(HIDDEN, g, inner=10)
    )
    refuses(["an inner size of 24 cannot be split over 5"], lambda g: ParallelMLP(6, g), size=5)


@pytest.mark.parametrize("sequence_dim", [None, 1])
def test_a_piece_where_the_whole_hidden_is_expected(sequence_dim):
    fragments = [
        f"{variant(ColumnParallelLinear, sequence_dim).__name__}(in=24, out=24 of 96, rank=0) on rank 0 of 4",
        "an input of shape (2, 7, 6); its last dim must be 24",
    ]
    refuses(fragments, lambda g: variant(ParallelMLP, sequence_dim)(HIDDEN, g)(torch.ones(2, 7, 6)))


# ---- without data ----


@pytest.mark.parametrize("sequence_dim", [None, 1])
def test_on_the_meta_device_in_bf16(sequence_dim):
    def program(group):
        with torch.device("meta"):
            mlp = variant(ParallelMLP, sequence_dim)(12288, group).bfloat16()
            x = torch.empty(1, 2048 if sequence_dim is None else 256, 12288, dtype=torch.bfloat16, requires_grad=True)
            y = mlp(x)
            y.backward(torch.empty_like(y))
            assert (y.shape, y.dtype) == (x.shape, x.dtype)
            return sum(p.grad.nbytes for p in mlp.parameters())

    assert Cluster(8).run(program) == [2 * (2 * 12288 * 6144 + 6144 + 12288)] * 8
