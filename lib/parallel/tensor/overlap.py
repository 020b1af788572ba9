"""Tensor parallelism's communication in the backward, hidden behind a product.

A column-parallel layer has two products in its backward, dX = dY Aᵀ and dA = Xᵀ dY, and f all-reduces dX. The second
product does not need the sum. So the all-reduce is begun first, and dA is computed while it is on its way. The numbers
are the same, and so are the bytes: only the order is another.

Narayanan et al. 2021, arXiv 2104.04473, have it as an option of Megatron-LM (`async_tensor_model_parallel_allreduce`).
"""

from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from lib.devices import Group
from lib.parallel.sharding.autocast import as_products_take
from lib.parallel.sharding.first_order import first_order
from lib.parallel.sharding.linear import ColumnParallelLinear
from lib.parallel.sharding.named import named
from lib.parallel.tensor.mlp import ParallelMLP


@named
def overlapped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
    """`F.linear(copy_to(x, group), weight, bias)`, with f's all-reduce beside the product for the weight's gradient.

    x (..., in) Replicate -> (..., out/P) Shard(-1), for weight (out/P, in).
    """
    return _OverlappedLinear.apply(*as_products_take(x, weight, bias), group)


class _OverlappedLinear(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, group):
        ctx.group = group
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_x = d_weight = d_bias = None
        if needs_x:
            summing = ctx.group.all_reduce(grad @ weight, async_op=True)  # (..., in)  Partial; on its way from here
        if needs_weight:
            d_weight = grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1])  # (out/P, in)  Shard(0)
        if needs_bias:
            d_bias = grad.reshape(-1, grad.shape[-1]).sum(0)  # (out/P,)  Shard(0)
        if needs_x:
            d_x = summing.wait()  # (..., in)  Replicate
        return d_x, d_weight, d_bias, None


class OverlappedColumnLinear(ColumnParallelLinear):
    """A `ColumnParallelLinear` whose all-reduce in the backward runs beside the product for the weight's gradient."""

    def enter(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Into the sharded region, by f: (..., in) Replicate -> (..., out/P) Shard(-1)."""
        return overlapped_linear(x, weight, bias, self.group)


class OverlappedMLP(ParallelMLP):
    """A `ParallelMLP` that hides the all-reduce of its backward."""

    Column = OverlappedColumnLinear
