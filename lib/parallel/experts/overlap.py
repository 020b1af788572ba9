"""A shared expert hides the dispatch: it needs no rows from elsewhere, so it works while they are on their way.

The same numbers and the same bytes; only the order is another. DeepSeek-AI 2024, arXiv 2412.19437, section 3.2.1, hides
both all-to-alls behind the attention and experts of another micro-batch; this is the simplest form of it.
"""

from torch import Tensor
from torch.autograd import Function

from lib.devices import Group, Handle
from lib.parallel.experts.dispatch import Plan, combine
from lib.parallel.experts.layer import MixtureOfExperts, Seen
from lib.parallel.sharding.first_order import first_order
from lib.parallel.sharding.named import named


class OverlappedExperts(MixtureOfExperts):
    """A `MixtureOfExperts` whose shared expert computes beside the first all-to-all. It must have one."""

    def answers(self, tokens: Tensor, gates: Tensor, seen: Seen) -> Tensor:
        """(n/P, h) and gates (n/P, k) -> (n/P, h)."""
        if self.shared is None:
            raise ValueError("OverlappedExperts: there is nothing to do beside the dispatch; pass shared=1 or more")
        group, plan = self.grid.experts, seen.plan
        rows, under_way = set_out(tokens, plan, group)
        shared = self.shared(tokens, [len(tokens)])
        y = self.experts(arrive(rows, under_way, group, plan), plan.counts)
        return combine(y, plan, group, gates) + shared


@named
def set_out(tokens: Tensor, plan: Plan, group: Group) -> tuple[Tensor, Handle]:
    """(n/P, h) -> the rows (R, h) that leave this device, and who waits for those that come."""
    rows = tokens.index_select(0, plan.rows // plan.k)
    return rows, group.all_to_all(rows.detach(), sizes=plan.table, async_op=True)


@named
def arrive(rows: Tensor, under_way: Handle, group: Group, plan: Plan) -> Tensor:
    """The rows that left -> (A, h), those of this device's experts, one expert after the other."""
    return _Arrive.apply(rows, under_way, group, plan).index_select(0, plan.by_expert)


class _Arrive(Function):
    @staticmethod
    def forward(ctx, rows: Tensor, under_way: Handle, group: Group, plan: Plan):
        ctx.group, ctx.plan = group, plan
        return under_way.wait()

    @staticmethod
    @first_order
    def backward(ctx, grad):
        return ctx.group.all_to_all(grad, sizes=ctx.plan.table_back), None, None, None
