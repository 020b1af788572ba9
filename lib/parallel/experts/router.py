"""The router: which few of the experts a token goes to, and with what weight each answer counts.

A token's score for expert e is a product with row e of the router's weight, made a number between 0 and 1. The k best
experts are chosen, and their scores are the gates by which the answers are summed:

    out = sum over the chosen e of  gate_e * expert_e(x)

Choosing has no gradient. The router learns through the gates alone: a gate is the only place where a score reaches the
loss. Shazeer et al. 2017, arXiv 1701.06538; Mixtral: Jiang et al. 2024, arXiv 2401.04088; sigmoid scores, a bias for
the choice alone, and the limit of nodes: DeepSeek-AI 2024, arXiv 2412.19437, section 2.1.2.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.devices import Group
from lib.devices.counts import check_counts
from lib.parallel.sharding.named import named

NOWHERE = -1  # in the place of an expert's number: this choice goes to none


@dataclass(frozen=True)
class RoutingRule:
    """How k of the `experts` are chosen, and what their scores become.

    `score` is a softmax over all experts, or a sigmoid of each alone. With `normalize` the gates of a token sum to 1,
    before they are multiplied by `scale`. With `node_limit`, the experts lie in `nodes` equal parts, and a token goes
    to at most `node_limit` of them: those whose `best` highest scores have the largest sum (None: k / node_limit).

    Raises ValueError for numbers that do not fit together.
    """

    experts: int
    k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    nodes: int = 1
    node_limit: int | None = None
    best: int | None = None

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("experts", "k", "nodes", "node_limit", "best")}
        check_counts("RoutingRule", {name: n for name, n in sizes.items() if n is not None})
        if self.k > self.experts:
            raise ValueError(f"RoutingRule: k={self.k} experts for each token, but there are only {self.experts}")
        if self.score not in ("softmax", "sigmoid"):
            raise ValueError(f"RoutingRule: score={self.score!r} must be 'softmax' or 'sigmoid'")
        if self.experts % self.nodes:
            raise ValueError(f"RoutingRule: {self.experts} experts cannot lie in {self.nodes} equal nodes")
        limit = self.nodes if self.node_limit is None else self.node_limit
        if not 1 <= limit <= self.nodes or limit * (self.experts // self.nodes) < self.k:
            raise ValueError(
                f"RoutingRule: node_limit={self.node_limit} of {self.nodes} nodes with {self.experts // self.nodes} "
                f"experts each must be at least 1, at most {self.nodes}, and leave {self.k} experts to choose"
            )


@dataclass(frozen=True)
class Routing:
    """Of n tokens: `chosen` (n, k) the experts' numbers or NOWHERE, `gates` (n, k), `scores` and `logits` (n, E)."""

    chosen: Tensor
    gates: Tensor
    scores: Tensor
    logits: Tensor


def route(logits: Tensor, rule: RoutingRule, bias: Tensor | None = None) -> Routing:
    """(n, E) -> which experts, by which gates. `bias` (E,) is added for the choice, and is no part of the gates."""
    scores = logits.softmax(-1) if rule.score == "softmax" else logits.sigmoid()  # (n, E)
    preferred = scores.detach() if bias is None else scores.detach() + bias
    if rule.node_limit is not None:
        preferred = _within_nodes(preferred, rule)
    chosen = preferred.topk(rule.k, -1).indices  # (n, k)
    gates = scores.gather(-1, chosen)
    if rule.normalize:
        gates = gates / gates.sum(-1, keepdim=True)
    return Routing(chosen, gates * rule.scale, scores, logits)


def _within_nodes(preferred: Tensor, rule: RoutingRule) -> Tensor:
    by_node = preferred.unflatten(-1, (rule.nodes, -1))  # (n, nodes, E/nodes)
    best = rule.best or max(1, rule.k // rule.node_limit)
    strength = by_node.topk(min(best, by_node.shape[-1]), -1).values.sum(-1)  # (n, nodes)
    nearest = strength.topk(rule.node_limit, -1).indices
    allowed = torch.zeros_like(strength, dtype=torch.bool).scatter(-1, nearest, True)
    return by_node.masked_fill(~allowed.unsqueeze(-1), -torch.inf).flatten(-2)


class Router(nn.Module):
    """weight (E, hidden) and, for the choice alone, `bias` (E,), a buffer that no gradient reaches. Both Replicate.

    Every device routes its own tokens, so the gradient of the weight is Partial over the devices of the batch.
    """

    def __init__(self, hidden: int, rule: RoutingRule):
        super().__init__()
        self.rule = rule
        self.weight = nn.Parameter(torch.empty(rule.experts, hidden).uniform_(-1, 1) / sqrt(hidden))
        self.register_buffer("bias", torch.zeros(rule.experts))

    def choose(self, x: Tensor, batch: Group) -> Routing:
        """(n/P, hidden) Shard(0) over `batch` -> the routing of these tokens. No communication."""
        return route(F.linear(x, self.weight), self.rule, self.bias)


class ExpertChoiceRouter(Router):
    """The other way round: each expert chooses its `k n / E` best tokens, so the loads are equal by construction.

    A token's experts then depend on the tokens behind it: a model that predicts the next one has seen it, and one that
    writes a text cannot do the same. Zhou et al. 2022, arXiv 2202.09368.
    Communication: an all-gather of the scores (n, E), and one of their numbers.
    """

    def choose(self, x: Tensor, batch: Group) -> Routing:
        """(n/P, hidden) -> chosen (n/P, E): expert e where it took the token, NOWHERE elsewhere."""
        logits = F.linear(x, self.weight)
        scores = logits.softmax(-1)  # (n/P, E)
        mine = taken_by_experts(scores.detach(), self.rule, batch)
        chosen = torch.arange(self.rule.experts, device=x.device).where(mine, NOWHERE)
        return Routing(chosen, scores * mine, scores, logits)


@named
def taken_by_experts(scores: Tensor, rule: RoutingRule, batch: Group) -> Tensor:
    """(n/P, E), the scores of own tokens -> (n/P, E): whether this expert takes this token, of those of all devices."""
    everyone = batch.all_gather(scores)  # (n, E)  Replicate
    first = sum(length for (length,) in batch.table_of([len(scores)])[: batch.rank])
    take = -(-rule.k * len(everyone) // rule.experts)  # rounded up
    taken = torch.zeros_like(everyone, dtype=torch.bool)
    taken.scatter_(0, everyone.topk(take, 0).indices, True)
    return taken[first : first + len(scores)]
