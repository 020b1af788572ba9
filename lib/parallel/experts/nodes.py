"""Dispatch in two steps on a machine of nodes: over the network once for each node, then on the fast links inside.

A token whose k experts lie in m nodes crosses the network k times when every row goes straight to its device, and m
times when it goes to each node once and is copied there. With routing limited to few nodes (`RoutingRule.node_limit`),
m is small. On the way back a node sums its answers first, and sends one row. DeepSeek-AI 2024, arXiv 2412.19437,
section 3.2.2.

The outer step is dispatch once more, with nodes in the place of experts. It carries the gates and the choices along.
"""

from typing import Any

import torch
from torch import Tensor

from lib.devices import Group, Mesh
from lib.parallel.experts.capacity import count_rows, rows_of_all
from lib.parallel.experts.dispatch import combine, dispatch, plan
from lib.parallel.experts.grid import ExpertGrid
from lib.parallel.experts.layer import MixtureOfExperts, Seen
from lib.parallel.experts.router import NOWHERE, RoutingRule


class NodeFirstExperts(MixtureOfExperts):
    """A `MixtureOfExperts` over `rule.nodes` nodes of neighboring devices.

    Communication: over the network, from each device, an all-to-all among the devices with the same place in their
    nodes: a row for each node that a token goes to. Then one inside each node, a row for each choice. And back.

    Raises ValueError unless nodes divide the devices, and devices the experts.
    """

    def __init__(self, hidden: int, inner: int, rule: RoutingRule, group: Group | ExpertGrid, **options: Any):
        super().__init__(hidden, inner, rule, group, **options)
        devices = self.grid.experts.size
        if devices % rule.nodes or rule.experts % devices:
            raise ValueError(
                f"NodeFirstExperts: {rule.nodes} nodes must divide {devices} devices, and those {rule.experts} experts"
            )
        mesh = Mesh(self.grid.experts, between=rule.nodes, within=devices // rule.nodes)
        self.between, self.within = mesh.between, mesh.within

    def answers(self, tokens: Tensor, gates: Tensor, seen: Seen) -> Tensor:
        """(n/P, h) and gates (n/P, k) -> (n/P, h)."""
        if tokens.is_meta:
            raise ValueError(
                "NodeFirstExperts: without data no one knows to which nodes a token goes; leave the meta device"
            )
        each = self.rule.experts // self.rule.nodes  # experts of a node
        targets = nodes_of(seen.chosen, self.rule)  # (n/P, nodes)
        outer = plan(targets, rows_of_all(count_rows(targets, self.rule.nodes), self.between), self.between)
        rows, gates_here, chosen = (dispatch(x, outer, self.between) for x in (tokens, gates, seen.chosen))
        first = each * self.between.rank
        inside = (chosen >= first) & (chosen < first + each)
        chosen = torch.where(inside, chosen - first, NOWHERE)  # (B, k)  of the B rows that came to this node's device
        inner = plan(chosen, rows_of_all(count_rows(chosen, each), self.within), self.within)
        y = self.experts(dispatch(rows, inner, self.within), inner.counts)
        of_node = combine(y, inner, self.within, gates_here)  # (B, h)  summed inside the node
        out = combine(of_node, outer, self.between, torch.ones_like(targets, dtype=gates.dtype))
        return out if self.shared is None else out + self.shared(tokens, [len(tokens)])


def nodes_of(chosen: Tensor, rule: RoutingRule) -> Tensor:
    """(n, k) experts -> (n, nodes): node m where one of the token's experts lies in it, NOWHERE elsewhere."""
    numbers = torch.arange(rule.nodes, device=chosen.device)
    node = torch.where(chosen < 0, NOWHERE, chosen // (rule.experts // rule.nodes))  # (n, k)
    return torch.where((node[..., None] == numbers).any(1), numbers, NOWHERE)
