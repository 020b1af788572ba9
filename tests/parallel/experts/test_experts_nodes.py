"""Dispatch in two steps equals one step, and sends a token to each node once."""

import pytest
import torch
from parallel.expert_layer import HIDDEN, INNER, assert_same, inputs, together

from lib.devices import Cluster, Hardware, Link
from lib.parallel.experts.layer import MixtureOfExperts
from lib.parallel.experts.nodes import NodeFirstExperts, nodes_of
from lib.parallel.experts.router import NOWHERE, RoutingRule

LIMITED = RoutingRule(16, 4, "sigmoid", nodes=4, node_limit=2)
FREE = RoutingRule(16, 4, nodes=4)


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize(
    ("rule", "options"), [(LIMITED, {"shared": 1}), (FREE, {"capacity_factor": 0.8}), (FREE, {"gated": True})]
)
def test_equals_one_device(size, rule, options):
    expected, _, _ = together(1, rule, *inputs(), **options)
    assert_same(together(size, rule, *inputs(), kind=NodeFirstExperts, **options)[0], expected)


def test_nodes_of_choices():
    rule = RoutingRule(6, 2, nodes=3)
    chosen = torch.tensor([[0, 1], [5, 2], [NOWHERE, 3], [NOWHERE, NOWHERE]])
    assert nodes_of(chosen, rule).tolist() == [[0, -1, -1], [-1, 1, 2], [-1, 1, -1], [-1, -1, -1]]


@pytest.mark.parametrize("rule", [LIMITED, FREE])
def test_a_token_crosses_the_network_once_for_each_node(rule):
    """Bytes over links between nodes: all devices with the same place in their nodes talk to no one else there."""
    _, seen, _ = together(8, rule, *inputs(), kind=NodeFirstExperts)

    def program(group):
        torch.manual_seed(0)
        layer = NodeFirstExperts(HIDDEN, INNER, rule, group).double()
        with torch.no_grad():
            layer(inputs()[0].tensor_split(group.size)[group.rank])
        return None

    cluster = Cluster(8)
    cluster.run(program)
    for rank in range(8):
        targets = nodes_of(seen[rank].chosen, rule)
        leaving = int(((targets >= 0) & (targets != rank // 2)).sum())
        straight = int((seen[rank].chosen // 4 != rank // 2).sum())
        assert leaving < straight
        inside = [int((seen[r].chosen >= 0).sum()) for r in range(8)]
        assert sum(inside) == 37 * rule.k
    # The slowest device, on a machine whose inner links cost nothing: rows there, gates and choices there, rows back.
    free = Link(0.0, 1e30)
    toy = Hardware("toy", 1e30, 1e30, 1e9, inside=free, between=Link(0.0, 1.0), per_node=2)
    seconds = []
    for kind in (MixtureOfExperts, NodeFirstExperts):
        cluster = Cluster(8, hardware=toy)
        cluster.run(forward_only, kind, rule)
        seconds.append(max(cluster.trace.total(rank, "communication") for rank in range(8)))
    assert seconds[1] < seconds[0]


def forward_only(group, kind, rule):
    torch.manual_seed(0)
    layer = kind(HIDDEN, INNER, rule, group).double()
    x = torch.randn(400, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layer(x.tensor_split(group.size)[group.rank])


def test_refused():
    with pytest.raises(ValueError, match="4 nodes must divide 6 devices, and those 16 experts"):
        Cluster(6).run(lambda group: NodeFirstExperts(HIDDEN, INNER, FREE, group))

    def without_data(group):
        with torch.device("meta"):
            NodeFirstExperts(HIDDEN, INNER, FREE, group)(torch.randn(4, HIDDEN))

    with pytest.raises(ValueError, match="no one knows to which nodes"):
        Cluster(8).run(without_data)
