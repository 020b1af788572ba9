"""Devices that disagree in a collective: MismatchError names both, and the line of each."""

import pytest
import torch

from lib.devices import Cluster, MismatchError

X = torch.zeros(4, 6)


def message(program, size=3):
    with pytest.raises(MismatchError) as error:
        Cluster(size).run(program)
    return str(error.value)


def test_the_whole_message():
    def program(group):
        if group.rank < 2:
            group.all_reduce(X)
        else:
            group.all_reduce(X[1:], op="sum")

    first = program.__code__.co_firstlineno
    assert message(program).splitlines() == [
        "in group (0, 1, 2) every device must bring the same shape.",
        f"  rank 0: all_reduce(op='sum') of float32 (4, 6), in program, line {first + 2}: group.all_reduce(X)",
        f"  rank 2: all_reduce(op='sum') of float32 (3, 6), in program, line {first + 4}: "
        'group.all_reduce(X[1:], op="sum")',
    ]


def test_the_ranks_are_named_in_order_whoever_came_first():
    def program(group):
        if group.rank == 0:
            group.recv(src=1)
        else:
            group.send(X, dst=0)
        group.all_reduce(X[group.rank :])

    lines = message(program, size=2).splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["  rank 0", "  rank 1"]


CASES = {
    "another verb": (
        lambda group: group.all_reduce(X) if group.rank else group.all_gather(X),
        ["must call the same verbs in the same order", "rank 0: all_gather(dim=0)", "rank 1: all_reduce(op='sum')"],
    ),
    "a verb against a barrier": (
        lambda group: group.all_reduce(X) if group.rank else group.barrier(),
        ["must call the same verbs in the same order", "rank 0: barrier()", "rank 1: all_reduce(op='sum') of float32"],
    ),
    "another operation": (
        lambda group: group.all_reduce(X, op="max" if group.rank else "sum"),
        ["must pass the same arguments", "rank 0: all_reduce(op='sum')", "rank 1: all_reduce(op='max')"],
    ),
    "another dim": (
        lambda group: group.all_gather(X, dim=group.rank),
        ["must pass the same arguments", "rank 0: all_gather(dim=0)", "rank 1: all_gather(dim=1)"],
    ),
    "another src": (
        lambda group: group.broadcast(X, src=group.rank),
        ["must pass the same arguments", "rank 0: broadcast(src=0)", "rank 1: broadcast(src=1)"],
    ),
    "another dst": (
        lambda group: group.gather(X, dst=group.rank),
        ["must pass the same arguments", "gather(dst=0, dim=0)", "gather(dst=1, dim=0)"],
    ),
    "another dtype": (
        lambda group: group.all_reduce(X.double() if group.rank else X),
        ["must bring the same dtype", ".to(dtype)", "rank 0: all_reduce(op='sum') of float32", "rank 1", "of float64"],
    ),
    "another device": (
        lambda group: group.all_reduce(X.to("meta") if group.rank else X),
        ["must bring tensors of one kind of memory", ".to(device)"],
    ),
    "another shape": (
        lambda group: group.all_reduce(X.T if group.rank else X),
        ["must bring the same shape.", "(4, 6)", "(6, 4)"],
    ),
    "another shape, where one dim may differ": (
        lambda group: group.all_gather(X[:, group.rank :], dim=0),
        ["must bring the same shape, except along dim 0", "(4, 6)", "(4, 5)"],
    ),
    "another number of dims": (
        lambda group: group.all_gather(X if group.rank else X[0], dim=0),
        ["must bring the same shape, except along dim 0", "(6,)", "(4, 6)"],
    ),
    "all_to_all, along the split dim": (
        lambda group: group.all_to_all(X[group.rank :], 0, 1),
        ["must bring the same shape, except along dim 1"],
    ),
    "gather": (
        lambda group: group.gather(X[:, group.rank :], dim=0),
        ["must bring the same shape, except along dim 0"],
    ),
    "reduce_scatter": (
        lambda group: group.reduce_scatter(X[group.rank :]),
        ["must bring the same shape.", "reduce_scatter(dim=0, op='sum')"],
    ),
    "reduce": (lambda group: group.reduce(X[group.rank :]), ["must bring the same shape.", "reduce(dst=0, op='sum')"]),
    "scatter": (
        lambda group: group.scatter(X if group.rank else X[1:]),
        ["must bring the same shape.", "scatter(src=0, dim=0)"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_named(case):
    program, fragments = CASES[case]
    text = message(program)
    assert text.startswith("in group (0, 1, 2) every device "), text
    missing = [fragment for fragment in fragments if fragment not in text]
    assert not missing, f"{missing} not in: {text}"


def test_a_device_that_brings_nothing_does_not_hide_two_that_disagree():
    def program(group):
        return group.broadcast([None, X, X[1:]][group.rank], src=1)

    text = message(program)
    assert "rank 1: broadcast(src=1) of float32 (4, 6)" in text
    assert "rank 2: broadcast(src=1) of float32 (3, 6)" in text


def test_the_measure_is_the_first_tensor_not_the_last_nothing():
    def program(group):
        return group.broadcast([X, None, X[1:]][group.rank], src=0)

    text = message(program)
    assert "rank 0: broadcast(src=0) of float32 (4, 6)" in text
    assert "rank 2: broadcast(src=0) of float32 (3, 6)" in text


def test_ranks_are_those_of_the_cluster():
    def program(group):
        pair = group.split([[3, 1]])
        if pair.rank is not None:
            pair.all_reduce(X[pair.rank :])

    text = message(program, size=4)
    assert text.startswith("in group (3, 1)")
    assert "rank 3: all_reduce(op='sum') of float32 (4, 6)" in text
    assert "rank 1: all_reduce(op='sum') of float32 (3, 6)" in text


def test_lengths_may_differ_where_the_verb_allows_it():
    def program(group):
        x = X[group.rank :]
        return group.all_gather(x), group.gather(x), group.all_to_all(x, split_dim=1, concat_dim=0)

    outputs = Cluster(3).run(program)
    assert [tuple(y.shape) for y in outputs[0]] == [(9, 6), (9, 6), (9, 2)]


def test_a_letter_that_nobody_reads():
    def program(group):
        pair = group.split([[1, 2]])
        if group.rank == 1:
            pair.send(X, dst=1, tag=4)
            pair.send(X[1:], dst=1, tag=4)

    assert message(program) == (
        "in group (1, 2) rank 0 sent to rank 1 (tag=4) what nobody received: 2 messages, the first of shape (4, 6). "
        "Add recv(src=0, tag=4) to the program of rank 1, or take the send away"
    )


def test_a_letter_under_another_tag_is_not_read_by_mistake():
    def program(group):
        group.send(X, dst=group.rank, tag=1)
        group.send(X, dst=group.rank, tag=2)
        group.recv(src=group.rank, tag=2)

    assert "rank 0 sent to rank 0 (tag=1) what nobody received: 1 message," in message(program)
