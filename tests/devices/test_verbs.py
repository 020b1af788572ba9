"""Every verb does what a plain formula says, for any world size, shape, dtype and memory layout."""

import functools
import operator

import pytest
import torch
from devices.inputs import DTYPES, Case, cases
from hypothesis import given
from hypothesis import strategies as st

from lib.devices import Cluster

ORDERED = [dtype for dtype in DTYPES if not dtype.is_complex]  # a complex number has no maximum
RANK = st.integers(0, 5)


def run(case: Case, verb: str, **arguments):
    """Calls the verb on every device, and checks what holds for all verbs: nothing given is written to, and nothing
    returned shares memory with anything else."""
    before = [x.clone() for x in case.tensors]
    outputs = Cluster(case.size).run(lambda group: getattr(group, verb)(case.tensors[group.rank], **arguments))
    assert all(torch.equal(x, y) for x, y in zip(case.tensors, before, strict=True)), "an input was written to"
    memory = [x.untyped_storage() for x in (*outputs, *case.tensors) if x is not None]
    places = [storage.data_ptr() for storage in memory if storage.nbytes()]
    assert len(set(places)) == len(places), "tensors of two devices share memory"
    return outputs


def same(outputs, expected):
    """Equal to the last bit: values, shape and dtype."""
    assert len(outputs) == len(expected)
    for rank, (y, z) in enumerate(zip(outputs, expected, strict=True)):
        if z is None:
            assert y is None, rank
        else:
            assert y.dtype == z.dtype, rank
            assert torch.equal(y, z), rank
    return True


def plus(tensors):
    return functools.reduce(operator.add, tensors)  # for bool, + is "or"


@given(cases())
def test_all_reduce_is_the_sum(case):
    assert same(run(case, "all_reduce"), [plus(case.tensors)] * case.size)


@given(cases(dtypes=ORDERED), st.sampled_from(["max", "min"]))
def test_all_reduce_is_the_largest_or_smallest(case, op):
    stacked = torch.stack(case.tensors)
    expected = stacked.amax(0) if op == "max" else stacked.amin(0)
    assert same(run(case, "all_reduce", op=op), [expected] * case.size)


@given(cases(free=True))
def test_all_gather_concatenates(case):
    expected = torch.cat(case.tensors, case.dim)
    assert same(run(case, "all_gather", dim=case.dim), [expected] * case.size)


@given(cases())
def test_reduce_scatter_gives_each_device_its_piece_of_the_sum(case):
    expected = plus(case.tensors).tensor_split(case.size, case.dim)
    assert same(run(case, "reduce_scatter", dim=case.dim), expected)


@given(cases(dtypes=ORDERED), st.sampled_from(["max", "min"]))
def test_reduce_scatter_knows_max_and_min(case, op):
    stacked = torch.stack(case.tensors)
    expected = (stacked.amax(0) if op == "max" else stacked.amin(0)).tensor_split(case.size, case.dim)
    assert same(run(case, "reduce_scatter", dim=case.dim, op=op), expected)


def swapped(tensors, split_dim, concat_dim):
    """all_to_all by its definition: receiver r concatenates piece r of every sender."""
    size = len(tensors)
    return [torch.cat([x.tensor_split(size, split_dim)[r] for x in tensors], concat_dim) for r in range(size)]


@given(cases())
def test_all_to_all_swaps_pieces(case):
    expected = swapped(case.tensors, case.dim, case.other_dim)
    assert same(run(case, "all_to_all", split_dim=case.dim, concat_dim=case.other_dim), expected)


@given(cases(free=True), st.data())
def test_all_to_all_takes_uneven_lengths_along_the_concatenated_dim(case, data):
    ndim = case.tensors[0].ndim
    split_dim = data.draw(st.integers(0, ndim - 1))
    if split_dim == case.dim % ndim:
        case.tensors = [case.tensors[0]] * case.size  # nothing may differ then
        case.tensors = [x.clone() for x in case.tensors]
    expected = swapped(case.tensors, split_dim, case.dim)
    assert same(run(case, "all_to_all", split_dim=split_dim, concat_dim=case.dim), expected)


@given(cases(), RANK)
def test_broadcast_gives_the_tensor_of_src(case, src):
    src %= case.size
    assert same(run(case, "broadcast", src=src), [case.tensors[src]] * case.size)


@given(cases(), RANK)
def test_reduce_gives_the_sum_to_dst_alone(case, dst):
    dst %= case.size
    expected = [plus(case.tensors) if r == dst else None for r in range(case.size)]
    assert same(run(case, "reduce", dst=dst), expected)


@given(cases(dtypes=ORDERED), RANK, st.sampled_from(["max", "min"]))
def test_reduce_knows_max_and_min(case, dst, op):
    dst %= case.size
    stacked = torch.stack(case.tensors)
    whole = stacked.amax(0) if op == "max" else stacked.amin(0)
    expected = [whole if r == dst else None for r in range(case.size)]
    assert same(run(case, "reduce", dst=dst, op=op), expected)


@given(cases(), RANK)
def test_scatter_gives_each_device_its_piece_of_the_tensor_of_src(case, src):
    src %= case.size
    expected = case.tensors[src].tensor_split(case.size, case.dim)
    assert same(run(case, "scatter", dim=case.dim, src=src), expected)


@given(cases(free=True), RANK)
def test_gather_concatenates_on_dst_alone(case, dst):
    dst %= case.size
    whole = torch.cat(case.tensors, case.dim)
    expected = [whole if r == dst else None for r in range(case.size)]
    assert same(run(case, "gather", dim=case.dim, dst=dst), expected)


@given(cases())
def test_send_and_recv_hand_round_the_ring(case):
    def program(group):
        group.send(case.tensors[group.rank], dst=(group.rank + 1) % group.size)
        return group.recv(src=(group.rank - 1) % group.size)

    outputs = Cluster(case.size).run(program)
    assert same(outputs, [case.tensors[r - 1] for r in range(case.size)])
    places = {x.untyped_storage().data_ptr() for x in case.tensors if x.untyped_storage().nbytes()}
    assert not places & {y.untyped_storage().data_ptr() for y in outputs}


@pytest.mark.parametrize("dims", [{}, {"dim": 0}])
def test_dims_are_0_unless_named(dims):
    x = torch.arange(12.0).reshape(4, 3)

    def program(group):
        together = group.all_gather(x, **dims), group.gather(x, **dims)
        pieces = group.reduce_scatter(x, **dims), group.scatter(x, **dims)
        return together, pieces, group.all_to_all(x) if not dims else group.all_to_all(x, 0, 0)

    (together, pieces, swap), _ = Cluster(2).run(program)
    assert [tuple(y.shape) for y in together] == [(8, 3), (8, 3)]
    assert [y.tolist() for y in pieces] == [(2 * x[:2]).tolist(), x[:2].tolist()]
    assert swap.tolist() == torch.cat([x[:2], x[:2]]).tolist()


def test_src_dst_and_tag_are_0_unless_named():
    def program(group):
        mine = torch.tensor([float(group.rank)])
        if group.rank == 1:
            group.send(mine, dst=0)
        letter = group.recv(src=1, tag=0) if group.rank == 0 else None
        return group.broadcast(mine), group.reduce(mine), group.scatter(torch.ones(2) * mine), letter

    first, second = Cluster(2).run(program)
    assert [y.tolist() for y in first] == [[0.0], [1.0], [0.0], [1.0]]
    assert [y if y is None else y.tolist() for y in second] == [[0.0], None, [0.0], None]


def test_only_src_needs_a_tensor():
    def program(group):
        mine = torch.arange(4.0) if group.rank == 2 else None
        return group.broadcast(mine, src=2), group.scatter(mine, dim=-1, src=2)

    outputs = Cluster(3).run(program)
    assert [y.tolist() for y, _ in outputs] == [[0, 1, 2, 3]] * 3
    assert [y.tolist() for _, y in outputs] == [[0, 1], [2], [3]]


@given(cases(free=True))
def test_one_device_gets_back_what_it_brings(case):
    x, dim = case.tensors[0], case.dim

    def program(group):
        group.barrier()
        group.send(x, dst=0)
        return [
            group.all_reduce(x),
            group.all_gather(x, dim),
            group.reduce_scatter(x, dim),
            group.all_to_all(x, dim, dim),
            group.broadcast(x),
            group.reduce(x),
            group.scatter(x, dim),
            group.gather(x, dim),
            group.recv(src=0),
        ]

    (outputs,) = Cluster(1).run(program)
    assert same(outputs, [x] * 9)


def test_float_sums_have_the_same_bits_on_every_device():
    torch.manual_seed(0)
    tensors = [torch.randn(1000) * 10.0**r for r in range(5)]

    def program(group):
        x = tensors[group.rank]
        return group.all_reduce(x), group.all_gather(group.reduce_scatter(x))

    outputs = Cluster(5).run(program)
    for whole, gathered in outputs:
        assert torch.equal(whole, outputs[0][0])
        assert torch.equal(gathered, outputs[0][0])
    in_rank_order = plus(tensors)
    assert torch.equal(outputs[0][0], in_rank_order)


def test_a_single_number_can_be_reduced_and_broadcast():
    outputs = Cluster(3).run(lambda g: (g.all_reduce(torch.tensor(2)), g.broadcast(torch.tensor(g.rank), src=1)))
    assert outputs == [(torch.tensor(6), torch.tensor(1))] * 3


def test_a_parameter_becomes_a_plain_tensor():
    weight = torch.nn.Parameter(torch.ones(2))
    with torch.no_grad():
        outputs = Cluster(2).run(lambda group: group.all_reduce(weight))
    assert all(type(y) is torch.Tensor and not y.requires_grad for y in outputs)


def test_a_sparse_tensor_is_refused_by_its_layout():
    with pytest.raises(
        TypeError, match=r"all_gather.* on rank 0 .* needs a dense tensor, not one of layout torch.sparse"
    ):
        Cluster(2).run(lambda group: group.all_gather(torch.eye(2).to_sparse()))
    with pytest.raises(TypeError, match="send on rank 0 .* needs a dense tensor"):
        Cluster(2).run(lambda group: group.send(torch.eye(2).to_sparse(), 0))


def test_a_tangent_is_not_lost():
    def program(group):
        return torch.func.jvp(group.all_reduce, (torch.ones(2),), (torch.ones(2),))

    with pytest.raises(RuntimeError, match=r"all_reduce.* on rank 0 .*\(2,\) tensor has a tangent"):
        Cluster(2).run(program)
