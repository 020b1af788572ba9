"""What is refused, in which words; and what the rules of single operations say."""

import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib import (
    CONSTANT,
    ENTERED,
    MOVES,
    SUMMAND,
    WHOLE,
    Cluster,
    Group,
    Kind,
    Partial,
    PlacementError,
    Replicate,
    Shard,
    Typed,
    all_gather,
    all_to_all,
    copy_to,
    gather_from,
    reduce_from,
    reduce_scatter,
    scatter_to,
    shard,
)
from lib.parallel.data.clip import power_sum
from lib.parallel.experts.mlp import each_expert
from lib.parallel.tensor.vocabulary import own_tokens
from lib.parallel.typed.kinds import Fused

X, W = (4, 6, 8), (8, 8)
LARGEST = Kind(Partial("max"), Replicate())
CUT = {d: Kind(Shard(d), Shard(d)) for d in range(3)}


def looked_up(tokens, weight):
    return F.embedding(own_tokens(tokens.long(), len(weight), Group(None, 0, range(4)))[1], weight)


def kind_after(operation, *given, rules=None):
    """The kind of `operation(*tensors)`, for tensors (shape, kind) on four devices, without data."""

    def program(group):
        with Typed(rules=rules, tp=group) as types:
            tensors = []
            for shape, kind in given:
                x = torch.empty(shape, device="meta", requires_grad=kind.grad is not None)
                tensors.append(types.give(x, tp=kind))
            return types.of(operation(*tensors))["tp"]

    return Cluster(4).run(program)[0]


ACCEPTED = {
    "whole times whole": (torch.matmul, [(X, WHOLE), (W, WHOLE)], WHOLE),
    "entered times columns": (torch.matmul, [(X, ENTERED), ((8, 2), CUT[1])], CUT[2]),
    "columns times rows": (torch.matmul, [((4, 6, 2), CUT[2]), ((2, 8), CUT[0])], SUMMAND),
    "tokens times entered": (torch.matmul, [((4, 3, 8), CUT[1]), (W, ENTERED)], CUT[1]),
    "texts with texts": (torch.matmul, [((1, 6, 8), CUT[0]), ((1, 8, 6), CUT[0])], CUT[0]),
    "a weight of (out, in)": (F.linear, [(X, ENTERED), ((2, 8), CUT[0]), ((2,), CUT[0])], CUT[2]),
    "summand times entered": (torch.matmul, [(X, SUMMAND), (W, ENTERED)], SUMMAND),
    "summand plus summand": (torch.add, [(X, SUMMAND), (X, SUMMAND)], SUMMAND),
    "a constant fits everywhere": (torch.mul, [((1, 6, 8), CUT[0]), ((8,), CONSTANT)], CUT[0]),
    "sum of the cut dim": (lambda x: x.sum(0), [(X, CUT[0])], SUMMAND),
    "sum of NumPy's": (lambda x: x.sum(np.int64(0)), [(X, CUT[1])], CUT[0]),
    "a view by NumPy's": (lambda x: x.view(np.int64(4), 6, 8), [(X, CUT[1])], CUT[1]),
    "an order by NumPy's": (lambda x: x.permute(np.int64(1), 0, 2), [(X, CUT[1])], CUT[0]),
    "sum of another": (lambda x: x.sum(0), [(X, CUT[1])], CUT[0]),
    "mean of the cut dim": (lambda x: x.mean(), [(X, CUT[0])], Kind(Partial("mean"), Replicate())),
    "a mean, divided by P": (lambda x: x.mean() / 4, [(X, CUT[0])], SUMMAND),
    "a mean, times 1 / P": (lambda x: x.mean() * 0.25, [(X, CUT[0])], SUMMAND),
    "a mean, divided by another number": (lambda x: x.mean() / 2, [(X, CUT[0])], Kind(Partial("mean"), Replicate())),
    "summand plus a P-th of entered": (lambda x, b: x + b / 4, [(X, SUMMAND), ((8,), ENTERED)], SUMMAND),
    "summand plus P-ths of constants": (
        lambda x, b: x + (0 + b / 4 + b / 4),
        [(X, SUMMAND), ((8,), CONSTANT)],
        SUMMAND,
    ),
    "a P-th is whole all the same": (lambda x, b: F.gelu(b / 4) * x, [(X, SUMMAND), ((8,), ENTERED)], SUMMAND),
    "heads": (lambda x: x.unflatten(-1, (-1, 2)).transpose(1, 2), [(X, CUT[2])], CUT[1]),
    "heads and back": (lambda x: x.transpose(1, 2).flatten(2), [((4, 2, 6, 4), CUT[1])], CUT[2]),
    "an index of another dim": (lambda x: x[:, -1], [(X, CUT[2])], CUT[1]),
    "a list of indices of another dim": (lambda x: x[[0, 0, 1]], [(X, CUT[1])], CUT[1]),
    "a tensor of indices of another dim": (lambda x, i: x[i.long()], [(X, CUT[2]), ((3,), CONSTANT)], CUT[2]),
    "triangles of cut texts": (lambda x: x.tril(), [(X, CUT[0])], CUT[0]),
    "ones like a summand": (lambda x: torch.ones_like(x), [(X, SUMMAND)], CONSTANT),
    "-x of a summand": (lambda x: -x, [(X, SUMMAND)], SUMMAND),
    "blocks": (lambda a, b: torch.cat([a, b], 2).split([8, 8], 2)[1], [(X, CUT[2]), (X, CUT[2])], CUT[2]),
    "rows of a whole table": (lambda t, w: F.embedding(t.long(), w), [((4, 6), CONSTANT), (W, WHOLE)], WHOLE),
    "texts in a table": (lambda t, w: F.embedding(t.long(), w), [((1, 6), Kind(Shard(0))), (W, ENTERED)], CUT[0]),
    "a constant piece times entered": (torch.matmul, [((1, 6, 8), Kind(Shard(0))), (W, ENTERED)], CUT[0]),
    "a constant summand times entered": (torch.mul, [(X, Kind(Partial())), ((8,), ENTERED)], SUMMAND),
    "loss of own texts": (F.mse_loss, [(X, CUT[0]), (X, Kind(Shard(0)))], Kind(Partial("mean"), Replicate())),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name):
    operation, given, expected = ACCEPTED[name]
    assert kind_after(operation, *given) == expected


REFUSED = {
    "GeLU of a partial sum is not the sum of the GeLUs: reduce it first": (F.gelu, [(X, SUMMAND)]),
    "f is missing": (torch.matmul, [(X, WHOLE), ((8, 2), CUT[1])]),
    "has entered the sharded region": (torch.add, [(X, WHOLE), (X, ENTERED)]),
    "would count once on each of the 4": (torch.add, [(X, SUMMAND), ((8,), WHOLE)]),
    "each copy would get 1/4 of its gradient": (lambda x, b: x + b / 4, [(X, SUMMAND), ((8,), WHOLE)]),
    "before the sum over the devices, and would count once": (lambda x, b: x + b / 2, [(X, SUMMAND), ((8,), ENTERED)]),
    "squares of gradients that are cut are added": (lambda x, y: power_sum([x, y], 2.0), [(W, CUT[0]), (W, CONSTANT)]),
    "rows that were looked up": (lambda t, x: F.gelu(looked_up(t, x)), [((4, 6), CONSTANT), (W, CUT[0])]),
    "the weights of an expert that is here": (lambda w: F.gelu(each_expert(w)[0]), [((1, 8, 8), CUT[0])]),
    "a number is added before the sum": (lambda x: x + 1, [(X, SUMMAND)]),
    "not the sum of the products": (torch.mul, [(X, SUMMAND), (X, SUMMAND)]),
    "each device would get another block": (torch.matmul, [((1, 8), CUT[0]), ((8, 2), CUT[1])]),
    "cut both along it, or none": (torch.matmul, [((6, 8), CUT[1]), ((8, 2), ENTERED)]),
    "do not belong together": (torch.add, [((8, 8), CUT[0]), ((8, 8), CUT[1])]),
    "softmax over the dim that is cut": (lambda x: x.softmax(-1), [(X, CUT[2])]),
    "LayerNorm over the dim that is cut": (lambda x: F.layer_norm(x, (8,)), [(X, CUT[2])]),
    "LayerNorm's weight would not be reduced": (lambda x, w: F.layer_norm(x, (8,), w), [(X, CUT[1]), ((8,), WHOLE)]),
    "row 3 is another one on each": (lambda t, w: F.embedding(t.long(), w), [((4,), CONSTANT), (W, CUT[0])]),
    "index -1 of the dim that is cut": (lambda x: x[:, -1], [(X, CUT[1])]),
    "parts would be those of the own piece": (lambda x: x.chunk(2, -1), [(X, CUT[2])]),
    "its blocks end at": (lambda x: x.split([4, 12], -1), [((4, 6, 16), Kind(Fused(2, (0.5, 0.5)), None))]),
    "do not lie together in the whole": (lambda x: x.flatten(0, 1), [(X, CUT[1])]),
    "sum the squares": (lambda x: x.norm(), [(X, CUT[1])]),
    "reads a number that is another one": (lambda x: x.sum().item(), [(X, CUT[1])]),
    "tril of rows or columns that are cut": (lambda x: x.tril(), [(X, CUT[1])]),
    "a Partial(max) is negated": (lambda x: -x, [(X, LARGEST)]),
    "a Partial(max) is added": (lambda x: x + x, [(X, LARGEST)]),
    "a Partial(min) is added": (lambda x: 0 - x.amin(1), [(X, CUT[1])]),
    "a Partial(max) is added: reduce it": (lambda x: x.amax(1).sum(0), [(X, CUT[1])]),
    "a Partial(max) is added: reduce": (lambda x: x.cumsum(0), [(X, LARGEST)]),
    "a Partial(max) is multiplied": (torch.matmul, [(X, LARGEST), (W, ENTERED)]),
    "the numbers of own rows": (lambda x: x.max(1)[1] * 2, [(X, Kind(Shard(1)))]),
    "cumprod of a partial sum": (lambda x: x.cumprod(0), [(X, SUMMAND)]),
    "a rounding of a partial sum": (lambda x: x.to(torch.int64), [(X, SUMMAND)]),
    "long of a partial sum": (lambda x: x.long(), [(X, SUMMAND)]),
    "each device would take others": (lambda x, i: x[i.long()], [(X, WHOLE), ((2,), Kind(Shard(0)))]),
    "an index of several lists": (lambda x: x[[0, 1], :, [0, 1]], [(X, CUT[1])]),
    "with a weight for each class": (
        lambda x, t, w: F.cross_entropy(x, t.long(), w),
        [((3, 8), CUT[0]), ((3,), Kind(Shard(0))), ((8,), CONSTANT)],
    ),
    "there is no rule for erfinv": (torch.erfinv, [(X, WHOLE)]),
}


NUMBER_ADDED = {
    "NumPy's float": lambda x: x + np.float32(1),
    "NumPy's int": lambda x: x + np.int64(1),
    "by its name": lambda x: torch.add(x, other=1),
    "in place": lambda x: x.clone().add_(np.float32(1)),
}


@pytest.mark.parametrize("way", NUMBER_ADDED)
def test_a_number_is_refused_before_a_sum_in_whatever_way_it_is_written(way):
    with pytest.raises(PlacementError, match="a number is added before the sum"):
        kind_after(NUMBER_ADDED[way], (X, SUMMAND))


@pytest.mark.parametrize("words", REFUSED)
def test_refused(words):
    operation, given = REFUSED[words]
    with pytest.raises(PlacementError, match=re.escape(words)) as error:
        kind_after(operation, *given)
    assert re.search(r"\(rank \d, test_typed_rules.py line \d+: ", str(error.value))


def test_moves_are_the_table():
    moved = {
        "copy_to": lambda x, g: copy_to(x, g),
        "reduce_from": lambda x, g: reduce_from(x, g),
        "scatter_to": lambda x, g: scatter_to(x, g, 0),
        "shard": lambda x, g: shard(x, g, 0),
    }

    def program(group, move, kind):
        with Typed(tp=group) as types:
            x = types.give(torch.empty(8, 4, device="meta", requires_grad=True), tp=kind)
            return types.of(move(x, group))["tp"]

    kinds = [WHOLE, ENTERED, SUMMAND, CUT[0]]
    for name, move in moved.items():
        for kind in kinds:
            if kind == MOVES[name].takes:
                assert Cluster(4).run(program, move, kind)[0] == MOVES[name].makes
            else:
                with pytest.raises(PlacementError):
                    Cluster(4).run(program, move, kind)


def test_each_move_has_its_mirror():
    """Backward, a move goes from the gradient of what it makes to the gradient of what it takes: another line. The
    mirror of `shard`, a piece among zeros, is the one move that this book has no use for."""
    lines = {(move.takes, move.makes) for move in MOVES.values()}
    without = []
    for move in MOVES.values():
        back = Kind(move.makes.grad, move.makes.value), Kind(move.takes.grad, move.takes.value)
        without += [] if back in lines else [move.name]
    assert without == ["shard"]


TRAVEL = {
    "copy_to": copy_to,
    "reduce_from": reduce_from,
    "all_gather": lambda x, g: all_gather(x, g, 0),
    "gather_from": lambda x, g: gather_from(x, g, 0),
    "reduce_scatter": lambda x, g: reduce_scatter(x, g, 0),
    "scatter_to": lambda x, g: scatter_to(x, g, 0),
    "all_to_all": lambda x, g: all_to_all(x, g, 1, 0),
    "shard": lambda x, g: shard(x, g, 0),
}


@pytest.mark.parametrize("name", MOVES)
def test_bytes_are_those_that_travel(name):
    move = MOVES[name]

    def program(group, backward):
        x = torch.randn((2, 4) if move.takes == CUT[0] else (8, 4), dtype=torch.float64).requires_grad_()
        y = TRAVEL[name](x, group)
        if backward:
            y.backward(torch.ones_like(y))

    sent = []
    for backward in False, True:
        cluster = Cluster(4)
        cluster.run(program, backward)
        sent.append(cluster.meters.count(0).bytes_sent)
    assert (sent[0], sent[1] - sent[0]) == move.bytes(8 * 4 * 8, 4)


def test_nothing_runs_before_the_types_agree():
    ran = []

    def program(group: Group):
        with Typed(tp=group) as types:
            x = types.give(torch.ones(2, 2, requires_grad=True), tp=Partial())
            x.register_hook(ran.append)
            F.gelu(x)

    with pytest.raises(PlacementError):
        Cluster(2).run(program)
    assert not ran


def test_a_tensor_without_a_type_is_not_guessed():
    def program(group):
        with Typed(tp=group) as types:
            return types.give(torch.ones(2)) + outside

    outside = torch.ones(2)
    with pytest.raises(PlacementError, match="has no type"):
        Cluster(2).run(program)


def test_a_rule_of_ones_own():
    def rule(x, *args):
        return x.kind

    assert kind_after(torch.erfinv, (X, WHOLE), rules={"erfinv": rule}) == WHOLE


def test_axes_are_told_apart():
    def program(group):
        dp, tp = group.split([[0, 2], [1, 3]]), group.split(2)
        with Typed(dp=dp, tp=tp) as types:
            x = types.give(torch.empty(4, 8, requires_grad=True), dp=Shard(0), tp=Partial())
            assert types.short(reduce_from(x, tp)) == "S0|S0 R|R"
            F.gelu(x)

    with pytest.raises(PlacementError, match="over tp: GeLU"):
        Cluster(4).run(program)
    with pytest.raises(ValueError, match="no axis ep"):
        Cluster(2).run(lambda g: Typed(tp=g).give(torch.ones(2), ep=Shard(0)))


@pytest.mark.parametrize("dim", [0, -2, np.int64(0), np.arange(3)[0]], ids=repr)
def test_a_move_along_a_dim_that_another_axis_has_cut(dim):
    """However the number of the dim is written."""

    def program(group):
        dp, tp = group.split([[0, 2], [1, 3]]), group.split(2)
        with Typed(dp=dp, tp=tp) as types:
            x = types.give(torch.ones(4, 8, requires_grad=True), dp=Shard(0), tp=Shard(0))
            all_gather(x, tp, dim)

    with pytest.raises(PlacementError, match="cut over another axis"):
        Cluster(4).run(program)


def test_several_axes_are_averaged_by_their_product():
    """By one of two equal numbers nobody can tell which axis is meant: the mean stays a mean, and is not summed."""

    def program(group, number):
        dp, cp = group.split([[0, 2], [1, 3]]), group.split(2)
        with Typed(dp=dp, cp=cp) as types:
            x = types.give(torch.ones(4, requires_grad=True), dp=Shard(0), cp=Shard(0))
            return types.short(x.mean() / number)

    assert Cluster(4).run(program, 4) == ["P|R P|R"] * 4
    assert Cluster(4).run(program, 2) == ["Pmean|R Pmean|R"] * 4


def test_a_verb_over_two_axes_is_a_verb_over_both():
    def program(group, ranks):
        dp, cp = group.split([[0, 2], [1, 3]]), group.split(2)
        with Typed(dp=dp, cp=cp) as types:
            everyone = Group(dp.place, group.me, ranks, 99)
            x = types.give(torch.ones(4), dp=Partial(), cp=Partial())
            return types.short(everyone.all_reduce(x))

    assert Cluster(4).run(program, range(4)) == ["R|- R|-"] * 4
    with pytest.raises(PlacementError, match=r"over ranks \[0, 1, 2\], which are no axis"):
        Cluster(4).run(program, range(3))


def test_the_gradient_of_a_mean_of_means():
    """Of what is cut or was summed by f it is P times too large, and no average follows."""

    def program(group, placed):
        with Typed(dp=group) as types:
            w = types.give(torch.ones(4, requires_grad=True), dp=placed)
            x = types.give(torch.ones(2, 4), dp=Shard(0))
            y = x * copy_to(w, group) if placed == Replicate() else w.square()
            y.mean().backward()

    for placed in Replicate(), Shard(0):
        with pytest.raises(PlacementError, match="the sum of 2 means, so many times too large"):
            Cluster(2).run(program, placed)
