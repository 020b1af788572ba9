"""A shared expert hides the dispatch: it needs no rows from elsewhere, so it works while they are on their way.

The same numbers and the same bytes; only the order is another. DeepSeek-AI 2024, arXiv 2412.19437, section 3.2.1, hides
both all-to-alls behind the attention and experts of another micro-batch; this is the simplest form of it.
"""

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lib.devices import Group, Handle
from lib.parallel.experts.dispatch import Plan, combine
from lib.parallel.experts.layer import MixtureOfExperts, Seen


class OverlappedExperts(MixtureOfExperts):
    """A `MixtureOfExperts` whose shared expert computes beside the first all-to-all. It must have one."""

    def answers(self, tokens: Tensor, gates: Tensor, seen: Seen) -> Tensor:
        """(n/P, h) and gates (n/P, k) -> (n/P, h)."""
        if self.shared is None:
            raise ValueError("OverlappedExperts: there is nothing to do beside the dispatch; pass shared=1 or more")
        group, plan = self.grid.experts, seen.plan
        rows = tokens.index_select(0, plan.rows // plan.k)  # (R, h)
        under_way = group.all_to_all(rows.detach(), sizes=plan.table, async_op=True)
        shared = self.shared(tokens, [len(tokens)])
        arrived = _Arrive.apply(rows, under_way, group, plan)  # (A, h)  by sender
        y = self.experts(arrived.index_select(0, plan.by_expert), plan.counts)
        return combine(y, plan, group, gates) + shared


class _Arrive(Function):
    @staticmethod
    def forward(ctx, rows: Tensor, under_way: Handle, group: Group, plan: Plan):
        ctx.group, ctx.plan = group, plan
        return under_way.wait()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return ctx.group.all_to_all(grad, sizes=ctx.plan.table_back), None, None, None
