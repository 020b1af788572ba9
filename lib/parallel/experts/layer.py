"""A layer of experts on P devices: route, dispatch, compute, combine.

Lepikhin et al. 2020, arXiv 2006.16668 (GShard); Fedus et al. 2021, arXiv 2101.03961 (Switch); shared experts: Dai et
al. 2024, arXiv 2401.06066 (DeepSeekMoE).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.devices import Group
from lib.parallel.experts.capacity import capacity_for, count_rows, keep_first, rows_of_all
from lib.parallel.experts.dispatch import Plan, combine, dispatch, plan
from lib.parallel.experts.grid import ExpertGrid, as_grid
from lib.parallel.experts.mlp import Experts
from lib.parallel.experts.router import Router, Routing, RoutingRule
from lib.parallel.sharding.conjugates import copy_to, reduce_from
from lib.parallel.sharding.cuts import declare_cuts
from lib.parallel.sharding.named import named


@dataclass(frozen=True)
class Seen:
    """What the last forward did: the routing of this device's tokens, what of it was `chosen` (n/P, k) after drops,
    `wanted` and `kept` (P, E) rows of all devices of the batch, and the plan among those that divide the experts.
    """

    routing: Routing
    chosen: Tensor
    wanted: Tensor
    kept: Tensor
    plan: Plan


class MixtureOfExperts(nn.Module):
    """k of E experts for each token, divided over the devices of `group`, each of which brings tokens of its own.

    Input and output (..., hidden) Shard(0) over the batch. Each device's loss is its own, as in data parallelism: the
    gradients of its experts are whole, those of the router and the shared experts Partial (see `sum_gradients`).

    `rule` says how experts are chosen. `capacity_factor` bounds the rows of an expert (None: nothing is dropped), but
    not in `eval()`: who is dropped depends on all tokens of the batch, and a text is written token by token. With
    `renormalize`, the gates that drops leave to a token sum to what they summed to before. `shared` experts see every
    token. `group` may be an `ExpertGrid`: then data and tensor parallelism are combined with this.

    Communication over the devices that divide the experts, per pass: an all-to-all of the rows there and one back,
    (P-1)/P k n/P h from each device if the loads are even. Over the batch, an all-gather of 8 E bytes. With tensor
    parallelism, an all-reduce of (n/P, h) forward and another backward, and one of (n/P, k).

    Raises ValueError when there are more devices than experts.
    """

    Experts = Experts

    def __init__(
        self,
        hidden: int,
        inner: int,
        rule: RoutingRule,
        group: Group | ExpertGrid,
        gated: bool = False,
        capacity_factor: float | None = None,
        renormalize: bool = False,
        shared: int = 0,
        router: type[Router] = Router,
    ):
        super().__init__()
        self.grid = as_grid(group)
        if self.grid.experts.size > rule.experts:
            raise ValueError(
                f"MixtureOfExperts: {rule.experts} experts cannot be divided over {self.grid.experts.size} devices, "
                "some would have none. Take fewer with ExpertGrid.over(group, expert_parallel=...): the others hold "
                "copies; or cut each expert too, with tensor_parallel=..."
            )
        if capacity_factor is not None:
            capacity_for(1, rule.k, rule.experts, capacity_factor)  # refuses what is not above 0
        self.hidden, self.rule = hidden, rule
        self.capacity_factor, self.renormalize = capacity_factor, renormalize
        self.router = router(hidden, rule)
        self.experts = self.Experts(hidden, inner, rule.experts, self.grid, gated)
        self.shared = Experts(hidden, inner * shared, 1, self.grid, gated, shared=True) if shared else None
        self.seen: Seen | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) -> the same shape and placement."""
        if x.shape[-1:] != (self.hidden,):
            raise ValueError(
                f"MixtureOfExperts on rank {self.grid.everyone.rank} of {self.grid.everyone.size} got an input of "
                f"shape {tuple(x.shape)}; its last dim must be {self.hidden}"
            )
        for experts in filter(None, (self.experts, self.shared)):
            declare_cuts(experts)
        tokens = x.reshape(-1, self.hidden)  # (n/P, h)  Shard(0)
        routing = self.router.choose(tokens, self.grid.batch)
        self.seen = seen = self.find_way(routing)
        # Answers are combined before they are summed over the tensor group, which is k times fewer rows to sum. So
        # the gates meet partial answers, and their gradients are partial too: f for them as for the tokens.
        tensor = self.grid.tensor
        out = self.answers(copy_to(tokens, tensor), copy_to(self.gates(routing, seen), tensor), seen)
        return reduce_from(out, tensor).view_as(x)

    def answers(self, tokens: Tensor, gates: Tensor, seen: Seen) -> Tensor:
        """(n/P, h) and gates (n/P, k) -> (n/P, h), Partial over the tensor group: of the experts and the shared one."""
        rows = dispatch(tokens, seen.plan, self.grid.experts)  # (A, h)
        out = combine(self.experts(rows, seen.plan.counts), seen.plan, self.grid.experts, gates)
        return out if self.shared is None else out + self.shared(tokens, [len(tokens)])

    def find_way(self, routing: Routing) -> Seen:
        """What is dropped, and who sends what to whom. No gradients."""
        batch, experts = self.grid.batch, self.grid.experts
        wanted = rows_of_all(self.count_rows(routing.chosen), batch)  # (P, E)  Replicate
        chosen, kept = routing.chosen, wanted
        if self.capacity_factor is not None and self.training:
            room = capacity_for(int(wanted.sum()) // self.rule.k, self.rule.k, self.rule.experts, self.capacity_factor)
            chosen, kept = keep_first(chosen, wanted, batch.rank, room)
        first = batch.rank - experts.rank  # the devices that divide these experts are neighbors in the batch
        return Seen(routing, chosen, wanted, kept, plan(chosen, kept[first : first + experts.size], experts))

    def count_rows(self, chosen: Tensor) -> Tensor:
        """(n/P, k) -> (E,): to be overridden where there is no data, to say how uneven the loads are."""
        return count_rows(chosen, self.rule.experts)

    def gates(self, routing: Routing, seen: Seen) -> Tensor:
        """(n/P, k): those of the router, or what drops leave of them, scaled up to the same sum."""
        if not self.renormalize or routing.gates.is_meta:
            return routing.gates
        left = routing.gates * sent(routing.gates, seen.plan)
        total, rest = (gates.sum(-1, keepdim=True) for gates in (routing.gates, left))
        return left * (total / rest.where(rest > 0, 1))  # where all is dropped, any number but 0: it scales nothing

    def __getstate__(self) -> dict:
        """What a copy or a file gets: not `seen`, which holds the graph of the last forward."""
        return self.__dict__ | {"seen": None}

    def extra_repr(self) -> str:
        held = len(self.experts.up)
        return f"hidden={self.hidden}, k={self.rule.k}, experts={held} of {self.rule.experts}"


@named
def sent(gates: Tensor, plan: Plan) -> Tensor:
    """(n/P, k): 1 where the choice is sent to its expert, 0 where it was dropped."""
    return torch.zeros_like(gates).flatten().index_fill(0, plan.rows, 1.0).view_as(gates)
