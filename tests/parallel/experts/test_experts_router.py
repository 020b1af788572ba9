"""Choosing experts: k, scores, gates, bias, nodes; places in the queue and drops; experts that choose."""

import pytest
import torch

from lib.devices import Cluster
from lib.parallel.experts.capacity import capacity_for, count_rows, keep_first, places, rows_of_all
from lib.parallel.experts.grid import ExpertGrid, ShardExperts
from lib.parallel.experts.router import NOWHERE, ExpertChoiceRouter, RoutingRule, route

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 4.0, -1.0]], dtype=torch.float64)


def test_softmax_of_all_or_of_the_chosen_is_the_same_once_normalized():
    routing = route(LOGITS, RoutingRule(4, 2))
    assert routing.chosen.tolist() == [[1, 3], [0, 2]]
    torch.testing.assert_close(routing.gates, LOGITS.gather(1, routing.chosen).softmax(1))


def test_sigmoid_and_scale():
    routing = route(LOGITS, RoutingRule(4, 2, "sigmoid", normalize=False, scale=2.5))
    torch.testing.assert_close(routing.gates, 2.5 * LOGITS.gather(1, routing.chosen).sigmoid())


def test_a_bias_changes_the_choice_and_no_gate():
    bias = torch.tensor([0.0, -9.0, 0.0, 0.0], dtype=torch.float64)
    rule = RoutingRule(4, 2, normalize=False)
    routing = route(LOGITS, rule, bias)
    assert routing.chosen.tolist() == [[3, 2], [0, 2]]
    torch.testing.assert_close(routing.gates, LOGITS.softmax(1).gather(1, routing.chosen))


def test_few_nodes():
    rule = RoutingRule(4, 2, nodes=2, node_limit=1, best=2)
    # Node 1 has the larger sum for the first token (1 + 2 before the softmax), node 0 for the second.
    strength = LOGITS.softmax(1).unflatten(1, (2, 2)).sum(-1)
    expected = [{2 * int(node), 2 * int(node) + 1} for node in strength.argmax(1)]
    assert [set(row) for row in route(LOGITS, rule).chosen.tolist()] == expected


@pytest.mark.parametrize("seed", range(3))
def test_no_token_in_more_nodes_than_allowed(seed):
    logits = torch.randn(200, 32, generator=torch.Generator().manual_seed(seed))
    rule = RoutingRule(32, 6, nodes=8, node_limit=3)
    nodes = route(logits, rule).chosen // 4
    assert max(len(set(row)) for row in nodes.tolist()) == 3
    free = route(logits, RoutingRule(32, 6)).chosen // 4
    assert max(len(set(row)) for row in free.tolist()) > 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((4, 5), "k=5 experts for each token, but there are only 4"),
        ((4, 0), "k=0 must be an integer of at least 1"),
        ((0, 1), "experts=0"),
        ((4, 2, "relu"), "score='relu'"),
        ((6, 2, "softmax", True, 1.0, 4), "6 experts cannot lie in 4 equal nodes"),
        ((8, 4, "softmax", True, 1.0, 4, 1), "leave 4 experts to choose"),
        ((8, 1, "softmax", True, 1.0, 4, 5), "at most 4"),
        ((8, 1, "softmax", True, 1.0, 4, 2, 0), "best=0 must be an integer of at least 1"),
        ((8, 1, "softmax", True, 1.0, 4, 1.5), "node_limit=1.5 must be an integer of at least 1"),
    ],
)
def test_rules_that_cannot_be(arguments, says):
    with pytest.raises(ValueError, match=says):
        RoutingRule(*arguments)


# ---- capacity ----


def test_capacity():
    assert capacity_for(10, 2, 4, 1.0) == 5
    assert capacity_for(10, 2, 4, 1.05) == 6
    with pytest.raises(ValueError, match="above 0"):
        capacity_for(10, 2, 4, 0)


def test_places_in_the_queue():
    chosen = torch.tensor([[0, 1], [1, 2], [0, 1], [NOWHERE, 1]])
    assert places(chosen, 3)[:3].tolist() == [[0, 0], [1, 0], [1, 2]]
    assert int(places(chosen, 3)[3, 1]) == 3
    assert count_rows(chosen, 3).tolist() == [2, 4, 1]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("capacity", [1, 3, 9])
def test_the_same_are_dropped_on_any_number_of_devices(size, capacity):
    whole = torch.randint(-1, 5, (31, 3), generator=torch.Generator().manual_seed(2))

    def program(group):
        chosen = whole.tensor_split(group.size)[group.rank]
        chosen, kept = keep_first(chosen, rows_of_all(count_rows(chosen, 5), group), group.rank, capacity)
        assert count_rows(chosen, 5).tolist() == kept[group.rank].tolist()
        return chosen

    found = torch.cat(Cluster(size).run(program))
    taken, expected = [0] * 6, whole.clone()
    for token, row in enumerate(whole.tolist()):
        for j, expert in enumerate(row):
            taken[expert] += 1
            if expert >= 0 and taken[expert] > capacity:
                expected[token, j] = NOWHERE
    assert torch.equal(found, expected)


# ---- experts that choose ----


def expert_choice(group, x):
    torch.manual_seed(0)
    router = ExpertChoiceRouter(6, RoutingRule(4, 2)).double()
    return router.choose(x.tensor_split(group.size)[group.rank], group)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_expert_takes_the_same_number_of_its_best(size):
    x = torch.randn(11, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    each = Cluster(size).run(expert_choice, x)
    chosen, scores = torch.cat([one.chosen for one in each]), torch.cat([one.scores for one in each])
    assert count_rows(chosen, 4).tolist() == [6] * 4  # 2 * 11 / 4, rounded up
    for e in range(4):
        assert scores[chosen[:, e] == e, e].min() >= scores[chosen[:, e] != e, e].max()
    assert not torch.cat([one.gates for one in each])[chosen < 0].any()


def test_it_sees_what_comes_later():
    x = torch.randn(11, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[6:] *= 10
    before, after = (Cluster(1).run(expert_choice, some)[0].chosen[:6] for some in (x, changed))
    assert not torch.equal(before, after)


# ---- the grid ----


def test_the_groups_of_a_grid():
    def ranks(group):
        grid = ExpertGrid.over(group, 2, 2)
        return [part.ranks for part in (grid.batch, grid.experts, grid.replicas, grid.tensor)]

    assert Cluster(8).run(ranks)[5] == [(1, 3, 5, 7), (5, 7), (1, 5), (4, 5)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((3,), "6 devices cannot be divided into sets of expert_parallel=3 x tensor_parallel=4"), ((0,), "at least 1")],
)
def test_grids_that_cannot_be(arguments, says):
    with pytest.raises(ValueError, match=says):
        Cluster(6).run(lambda group: ExpertGrid.over(group, *arguments, tensor_parallel=4))


def test_pieces_of_the_experts():
    whole = torch.arange(5 * 6 * 2).view(5, 6, 2)
    layout = ShardExperts(1, experts=2, tensor=3, mine=1)
    pieces = [layout.piece(whole, 12, rank) for rank in range(12)]
    assert pieces[0].shape == (3, 2, 2)
    assert torch.equal(layout.whole(pieces), whole)
    assert all(torch.equal(layout.piece(whole, 3, t), pieces[3 + t]) for t in range(3))
    with pytest.raises(ValueError, match="6 devices hold one set"):
        layout.whole(pieces[:3])
