"""shard cuts, unshard puts together."""

import pytest
import torch
from devices.messages import says
from hypothesis import given
from hypothesis import strategies as st

from lib import shard, shard_sizes, unshard
from lib.devices import Cluster

SHAPES = st.lists(st.integers(0, 9), min_size=1, max_size=3)


@given(SHAPES, st.integers(1, 6), st.data())
def test_shard_is_tensor_split_and_unshard_undoes_it(shape, size, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = torch.randn(shape)
    shards = Cluster(size).run(lambda group: shard(x, group, dim))
    for piece, expected in zip(shards, torch.tensor_split(x, size, dim), strict=True):
        assert torch.equal(piece, expected)
        assert piece.untyped_storage().data_ptr() == x.untyped_storage().data_ptr(), "a shard is a view"
    assert [piece.shape[dim] for piece in shards] == shard_sizes(shape[dim], size)
    whole = unshard(shards, dim)
    assert torch.equal(whole, x)
    assert whole.data_ptr() != x.data_ptr() or x.numel() == 0


def test_shard_moves_nothing():
    cluster = Cluster(3)
    cluster.run(lambda group: shard(torch.zeros(6, 6), group, 1))
    assert cluster.meters.rows() == []


def test_shard_keeps_the_gradient():
    x = torch.arange(5.0, requires_grad=True)
    (piece,) = Cluster(1).run(lambda group: shard(x, group, 0))
    assert piece.requires_grad

    def program(group):
        y = torch.arange(5.0, requires_grad=True)
        shard(y, group, 0).sum().backward()
        return y.grad.tolist()

    assert Cluster(2).run(program) == [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]


def test_shard_follows_the_rank_in_a_sub_group():
    def program(group):
        return shard(torch.arange(4), group.split([[2, 0], [1, 3]]), 0).tolist()

    assert Cluster(4).run(program) == [[2, 3], [0, 1], [0, 1], [2, 3]]


@pytest.mark.parametrize("dim", [2, -3])
def test_a_dim_out_of_range(dim):
    x = torch.zeros(4, 6)
    text = rf"dim {dim} is out of range for a tensor of shape \(4, 6\) with 2 dims"
    with pytest.raises(IndexError, match=f"shard on rank 0: {text}"):
        Cluster(2).run(lambda group: shard(x, group, dim))
    with pytest.raises(IndexError, match=f"unshard: {text}"):
        unshard([x, x], dim)


def test_a_list_is_no_tensor():
    with says(TypeError, "shard on rank 0 needs a torch.Tensor, not list; convert with torch.as_tensor(...)"):
        Cluster(2).run(lambda group: shard([1.0, 2.0], group, 0))
    with pytest.raises(TypeError, match=r"unshard needs a torch.Tensor, not float"):
        unshard([1.0], 0)


def test_no_shards():
    with pytest.raises(ValueError, match=r"there are no shards; pass the list of all pieces in rank order"):
        unshard([], 0)


@pytest.mark.parametrize("lengths", [[1, 2], [3, 1], [2, 2, 0], [0, 1]])
def test_pieces_that_no_cut_gives(lengths):
    size, whole = len(lengths), sum(lengths)
    complaint = f"{size} shards of {whole} along dim 0 have sizes {shard_sizes(whole, size)}, not {lengths}"
    with says(ValueError, complaint, "in rank order"):
        unshard([torch.zeros(n, 2) for n in lengths], 0)
