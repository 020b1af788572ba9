"""A mistake is named before anything runs: rank, group, operation, shape, and what to do instead."""

import numpy as np
import pytest
import torch
from devices import messages

from lib.devices import Cluster

X = torch.zeros(4, 6)


def says(error_type, fragments, program, size=3):
    """Runs the program, which must fail, and looks for the fragments in the message."""
    with messages.says(error_type, *fragments):
        Cluster(size).run(program)


@pytest.mark.parametrize("size", [0, -1, 2.0, "4", None, True], ids=repr)
def test_a_size_that_is_no_number_of_devices(size):
    with messages.says(ValueError, f"Cluster(size={size!r})", "must be an integer of at least 1"):
        Cluster(size)


@pytest.mark.parametrize("program", [None, 3, "program", X], ids=["None", "int", "str", "tensor"])
def test_a_program_that_cannot_be_called(program):
    with messages.says(TypeError, "needs a program, a function of (group, ...), not " + type(program).__name__):
        Cluster(2).run(program)


def needs_two(group, x, w):
    raise AssertionError("must not run")


@pytest.mark.parametrize(
    ("args", "kwargs", "complaint"),
    [
        ((X,), {}, "missing a required argument: 'w'"),
        ((X, X, X), {}, "too many positional arguments"),
        ((X, X), {"bias": 1}, "unexpected keyword argument 'bias'"),
    ],
)
def test_a_program_that_takes_other_arguments(args, kwargs, complaint):
    with pytest.raises(TypeError) as error:
        Cluster(2).run(needs_two, *args, **kwargs)
    text = str(error.value)
    assert "needs_two(group, x, w) cannot be called as needs_two(group, ...)" in text
    assert f"{len(args)} positional and {len(kwargs)} keyword argument{'s' * (len(kwargs) != 1)} after" in text
    assert complaint in text
    assert "handed its group first" in text


def test_a_program_that_forgets_the_group():
    with pytest.raises(TypeError, match="too many positional arguments.*handed its group first"):
        Cluster(2).run(lambda: None)


VERBS = {
    "all_reduce": lambda group, x: group.all_reduce(x),
    "all_gather": lambda group, x: group.all_gather(x),
    "reduce_scatter": lambda group, x: group.reduce_scatter(x),
    "all_to_all": lambda group, x: group.all_to_all(x),
    "broadcast": lambda group, x: group.broadcast(x),
    "reduce": lambda group, x: group.reduce(x),
    "scatter": lambda group, x: group.scatter(x),
    "gather": lambda group, x: group.gather(x),
    "send": lambda group, x: group.send(x, dst=1),
}
PARTNERS = {
    "all_reduce": "reduce_from(x, group)",
    "all_gather": "gather_from(x, group, dim) or all_gather(x, group, dim)",
    "reduce_scatter": "reduce_scatter(x, group, dim)",
    "all_to_all": "all_to_all(x, group, split_dim, concat_dim)",
    "scatter": "scatter_to(x, group, dim)",
    "gather": "gather_from(x, group, dim)",
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_tensor_that_requires_grad(verb):
    x = X.clone().requires_grad_()
    fragments = [f"{verb} on rank 0 of group (0, 1, 2)", "(4, 6) tensor requires grad", "pass x.detach()"]
    if verb in PARTNERS:
        fragments.append(f"use {PARTNERS[verb]} of lib.parallel")
    says(RuntimeError, fragments, lambda group: VERBS[verb](group, x))
    if verb not in PARTNERS:
        with pytest.raises(RuntimeError) as error:
            Cluster(2).run(lambda group: VERBS[verb](group, x))
        assert "lib.parallel" not in str(error.value)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("x", [3.0, [1.0], None], ids=["float", "list", "None"])
def test_something_that_is_no_tensor(verb, x):
    fragments = [f"{verb} on rank 0 of group (0, 1, 2)", f"needs a torch.Tensor, not {type(x).__name__}"]
    says(TypeError, fragments, lambda group: VERBS[verb](group, x))


def test_even_where_no_tensor_is_needed_only_a_tensor_will_do():
    program = lambda group: group.broadcast([1.0] if group.rank == 1 else X)  # noqa: E731
    says(TypeError, ["broadcast on rank 1 of group (0, 1, 2) needs a torch.Tensor, not list"], program)


CUTS = {
    "all_gather": lambda group, x, dim: group.all_gather(x, dim),
    "reduce_scatter": lambda group, x, dim: group.reduce_scatter(x, dim),
    "all_to_all": lambda group, x, dim: group.all_to_all(x, dim, 0),
    "all_to_all (concat)": lambda group, x, dim: group.all_to_all(x, 0, dim),
    "scatter": lambda group, x, dim: group.scatter(x, dim),
    "gather": lambda group, x, dim: group.gather(x, dim),
}


@pytest.mark.parametrize("dim", [2, -3])
@pytest.mark.parametrize("verb", CUTS)
def test_a_dim_out_of_range(verb, dim):
    fragments = [
        f"{verb.split()[0]} on rank 0 of group (0, 1, 2)",
        f"dim {dim} is out of range for a tensor of shape (4, 6)",
        "it has dims -2 to 1",
    ]
    says(IndexError, fragments, lambda group: CUTS[verb](group, X, dim))


def test_a_single_number_has_no_dims():
    fragments = ["dim 0 is out of range for a tensor of shape ()", "a single number has no dims: pass x.reshape(1)"]
    says(IndexError, fragments, lambda group: group.all_gather(torch.tensor(1.0)))


PEERS = {
    "broadcast": ("src", lambda group, peer: group.broadcast(X, src=peer)),
    "reduce": ("dst", lambda group, peer: group.reduce(X, dst=peer)),
    "scatter": ("src", lambda group, peer: group.scatter(X, src=peer)),
    "gather": ("dst", lambda group, peer: group.gather(X, dst=peer)),
    "send": ("dst", lambda group, peer: group.send(X, dst=peer)),
    "recv": ("src", lambda group, peer: group.recv(src=peer)),
}


@pytest.mark.parametrize("peer", [3, -1, 1.0, None, True], ids=repr)
@pytest.mark.parametrize("verb", PEERS)
def test_a_rank_outside_of_the_group(verb, peer):
    what, call = PEERS[verb]
    fragments = [
        f"{verb} on rank 0 of group (0, 1, 2)",
        f"{what}={peer!r} is not in the group",
        "its ranks are 0 to 2",
    ]
    says(ValueError, fragments, lambda group: call(group, peer))


@pytest.mark.parametrize("peer", [np.int64(1), np.arange(3)[2], True])
@pytest.mark.parametrize("verb", PEERS)
def test_a_rank_that_is_no_integer_of_python(verb, peer):
    what, call = PEERS[verb]
    fragments = [f"{what}={peer!r} is not in the group", f"Pass a Python integer: int({what})"]
    says(ValueError, fragments, lambda group: call(group, peer))


def test_the_group_is_named_by_ranks_of_the_cluster_and_the_rank_counts_within_it():
    def program(group):
        pair = group.split([[0], [1, 2]])
        if group.rank == 1:
            pair.send(X, dst=2)

    says(ValueError, ["send on rank 0 of group (1, 2): dst=2 is not in the group", "its ranks are 0 to 1"], program)


def test_a_large_group_is_named_in_short():
    says(ValueError, ["of group (0, 1, 2, ..., 12): dst=13"], lambda group: group.send(X, dst=13), size=13)
    says(ValueError, ["of group (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11): dst=13"], lambda g: g.send(X, dst=13), size=12)


@pytest.mark.parametrize("verb", [*VERBS, "barrier", "recv", "split"])
def test_a_device_outside_of_the_group(verb):
    calls = {
        **VERBS,
        "barrier": lambda group, x: group.barrier(),
        "recv": lambda group, x: group.recv(src=0),
        "split": lambda group, x: group.split([[0]]),
    }

    def program(group):
        pair = group.split([[0, 1]])
        if group.rank == 2:
            calls[verb](pair, X)

    fragments = [f"{verb}: rank 2 is not a member of this group", "guard the call with `if group.rank is not None`"]
    says(ValueError, fragments, program)


@pytest.mark.parametrize("verb", ["all_reduce", "reduce_scatter", "reduce"])
def test_an_operation_that_does_not_exist(verb):
    fragments = [verb, "op='mean' is not one of 'sum', 'max', 'min'"]
    says(ValueError, fragments, lambda group: getattr(group, verb)(X, op="mean"))


@pytest.mark.parametrize("parts", [4, 0, -1])
def test_a_number_of_groups_that_does_not_divide(parts):
    fragments = [f"6 devices cannot be split into {parts} equal groups", f"{parts} must divide 6"]
    says(ValueError, fragments, lambda group: group.split(parts), size=6)


def test_a_list_that_names_a_rank_twice():
    fragments = ["split([[0, 1], [1, 2]])", "a rank is named twice", "in one sub-group at most"]
    says(ValueError, fragments, lambda group: group.split([[0, 1], [1, 2]]))


@pytest.mark.parametrize("rank", [3, -1, "0"])
def test_a_list_that_names_a_rank_that_does_not_exist(rank):
    fragments = ["split on rank 0 of group (0, 1, 2)", f"rank={rank!r} is not in the group", "its ranks are 0 to 2"]
    says(ValueError, fragments, lambda group: group.split([[0, 1], [rank]]))


def test_nothing_has_been_charged_when_a_mistake_is_found():
    cluster = Cluster(2)
    for mistake in (
        lambda group: group.all_gather(X, dim=5),
        lambda group: group.send(X, dst=5),
        lambda group: group.all_reduce(X.clone().requires_grad_()),
    ):
        with pytest.raises((IndexError, ValueError, RuntimeError)):
            cluster.run(mistake)
        assert cluster.meters.rows() == []
