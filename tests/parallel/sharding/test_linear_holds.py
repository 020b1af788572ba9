"""What the layers hold: the shards of the dense parameters, in whose memory, and what they say of themselves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lib import ColumnParallelLinear, RowParallelLinear, shard
from lib.devices import Cluster

LAYERS = {"column": (ColumnParallelLinear, 0, 0), "row": (RowParallelLinear, 1, None)}
NAMES = pytest.mark.parametrize("name", LAYERS)


def inside(piece, whole):
    """Whether `piece` lies in the memory of `whole`."""
    return piece.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@given(st.sampled_from(list(LAYERS)), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.booleans())
def test_initialized_as_the_shard_of_the_dense_layer_whatever_the_device_count(name, n_in, n_out, size, bias):
    make, weight_dim, bias_dim = LAYERS[name]
    torch.manual_seed(n_in)
    dense = nn.Linear(n_in, n_out, bias=bias)
    next_number = float(torch.rand(()))

    def program(group):
        torch.manual_seed(n_in)
        layer = make(n_in, n_out, group, bias=bias)
        assert float(torch.rand(())) == next_number, "the stream goes on where the dense layer leaves it"
        assert torch.equal(layer.weight, shard(dense.weight, group, weight_dim))
        assert isinstance(layer.weight, nn.Parameter)
        assert list(dict(layer.named_parameters())) == (["weight", "bias"] if bias else ["weight"])
        if bias:
            assert torch.equal(layer.bias, dense.bias if bias_dim is None else shard(dense.bias, group, bias_dim))
        assert layer.weight.requires_grad
        assert layer.weight.is_contiguous()

    Cluster(size).run(program)


@NAMES
def test_a_piece_does_not_keep_the_whole_alive(name):
    make = LAYERS[name][0]
    sizes = Cluster(4).run(lambda group: make(8, 8, group).weight.untyped_storage().nbytes())
    assert sizes == [8 * 2 * 4] * 4


@NAMES
def test_from_dense_shares_memory_under_no_grad(name):
    make = LAYERS[name][0]
    dense = nn.Linear(8, 8)
    with torch.no_grad():
        layers = Cluster(4).run(lambda group: make.from_dense(dense, group))
    for rank, layer in enumerate(layers):
        assert inside(layer.weight, dense.weight)
        assert inside(layer.bias, dense.bias)
        offset = rank * 2 * (8 if name == "column" else 1)
        assert layer.weight.data_ptr() == dense.weight.data_ptr() + offset * 4


@NAMES
def test_from_dense_copies_for_training(name):
    make = LAYERS[name][0]
    dense = nn.Linear(8, 8)
    before = dense.weight.detach().clone()

    def program(group):
        layer = make.from_dense(dense, group)
        assert not inside(layer.weight, dense.weight)
        assert not inside(layer.bias, dense.bias)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()

    Cluster(2).run(program)
    assert torch.equal(dense.weight, before)


@NAMES
def test_from_dense_keeps_what_is_frozen_and_the_dtype(name):
    make = LAYERS[name][0]
    dense = nn.Linear(4, 4, dtype=torch.bfloat16)
    dense.weight.requires_grad_(False)

    def program(group):
        layer = make.from_dense(dense, group)
        return layer.weight.requires_grad, layer.bias.requires_grad, layer.weight.dtype

    assert Cluster(2).run(program) == [(False, True, torch.bfloat16)] * 2


def test_from_dense_takes_the_options():
    dense = nn.Linear(4, 6, bias=False)

    def program(group):
        column = ColumnParallelLinear.from_dense(dense, group, gather_output=True)
        row = RowParallelLinear.from_dense(dense, group, scatter_input=True)
        plain = ColumnParallelLinear.from_dense(dense, group), RowParallelLinear.from_dense(dense, group)
        assert (plain[0].gather_output, plain[1].scatter_input) == (False, False)
        assert (column.bias, row.bias) == (None, None)
        return column.gather_output, row.scatter_input, column.in_features, row.out_features

    assert Cluster(2).run(program) == [(True, True, 4, 6)] * 2


def test_options_are_off_and_bias_is_on_unless_asked_otherwise():
    def program(group):
        column, row = ColumnParallelLinear(4, 6, group), RowParallelLinear(4, 6, group)
        assert column.bias is not None
        assert row.bias is not None
        return column.gather_output, row.scatter_input

    assert Cluster(2).run(program) == [(False, False)] * 2


def test_what_they_print():
    def program(group):
        return repr(ColumnParallelLinear(4, 6, group)), repr(RowParallelLinear(5, 3, group))

    assert Cluster(4).run(program)[1] == (
        "ColumnParallelLinear(in=4, out=2 of 6, rank=1)",
        "RowParallelLinear(in=1 of 5, out=3, rank=1)",
    )


def test_on_the_meta_device_they_have_shapes():
    def program(group):
        with torch.device("meta"):
            column, row = ColumnParallelLinear(12288, 49152, group), RowParallelLinear(49152, 12288, group)
            return tuple(row(column(torch.empty(2, 12288))).shape), column.weight.device.type

    assert Cluster(8).run(program) == [((2, 12288), "meta")] * 8
