"""Dispatch and combine: every token to the devices of its experts, and the answers back. Two all-to-alls.

    x (n/P, h)          this device's tokens
      copy, sort        a row for each choice, by expert: so by device, since a device holds consecutive experts
      all-to-all        rows go to the devices of their experts; how many differs from pair to pair
      sort              what arrives lies by sender, within it by expert; an expert wants its rows together
      experts           each one works on its rows
      sort back, all-to-all back, weigh, sum: (n/P, h)

Each step is linear in the rows, so the way back of the gradients is the same road in the other direction: dispatch's
backward has the form of combine, and combine's that of dispatch. 4 all-to-alls per layer and step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.devices import Group
from lib.devices.pieces import cut
from lib.parallel.sharding.conjugates import all_to_all
from lib.parallel.sharding.named import named

Table = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Plan:
    """Who sends which rows to whom. R rows leave this device, A arrive.

    `rows` (R,): the choices t k + j that are sent, by expert. `table`: table[i][j] rows go from device i to device j.
    `counts`: how many arrive for each expert here. `by_expert` (A,): the arrivals, in the order that experts want, and
    `by_sender` its inverse.
    """

    k: int
    rows: Tensor
    table: Table
    counts: list[int]
    by_expert: Tensor
    by_sender: Tensor

    @property
    def table_back(self) -> Table:
        """What came from i goes back to i."""
        return tuple(zip(*self.table, strict=True))


@named
def plan(chosen: Tensor, kept: Tensor, group: Group) -> Plan:
    """chosen (n/P, k) and kept (P, E), the rows of each device for each expert -> this device's plan.

    Device j holds the j-th piece of the experts (`shard_sizes`); all of them know the whole table.
    """
    blocks = [block.sum(1) for block in cut(kept, group.size, 1)]  # of each receiver: (P,) rows from each sender
    table = tuple(map(tuple, torch.stack(blocks, 1).tolist()))
    here = cut(kept, group.size, 1)[group.rank]  # (P, E/P)
    flat = chosen.flatten()
    if chosen.is_meta:  # there are shapes alone
        rows = flat[: sum(table[group.rank])]
        by_expert = torch.empty(int(here.sum()), dtype=torch.int64, device="meta")
        return Plan(chosen.shape[1], rows, table, here.sum(0).tolist(), by_expert, by_expert)
    rows = flat.argsort(stable=True)[int((flat < 0).sum()) :]  # those that go nowhere come first
    expert = torch.arange(here.shape[1], device=here.device).repeat(group.size).repeat_interleave(here.flatten())
    by_expert = expert.argsort(stable=True)  # within an expert by sender: the order of the whole batch
    return Plan(chosen.shape[1], rows, table, here.sum(0).tolist(), by_expert, by_expert.argsort())


@named
def dispatch(x: Tensor, plan: Plan, group: Group) -> Tensor:
    """(n/P, h), this device's tokens -> (A, h), the rows of this device's experts, one expert after the other."""
    rows = x.index_select(0, plan.rows // plan.k)  # (R, h)  a copy for each choice
    arrived = all_to_all(rows, group, 0, 0, sizes=plan.table)  # (A, h)  by sender
    return arrived.index_select(0, plan.by_expert)


@named
def combine(y: Tensor, plan: Plan, group: Group, gates: Tensor) -> Tensor:
    """(A, h), the experts' answers, and gates (n/P, k) -> (n/P, h), for each token the weighted sum of its answers."""
    back = all_to_all(y.index_select(0, plan.by_sender), group, 0, 0, sizes=plan.table_back)  # (R, h)  as sent
    weighted = back * gates.reshape(-1, 1).index_select(0, plan.rows)
    return y.new_zeros(len(gates), y.shape[-1]).index_add(0, plan.rows // plan.k, weighted)
