"""Sequence parallelism: what tensor parallelism leaves replicated, cut along the sequence.

LayerNorm, dropout and the residual act on each token alone, so each device can do them for its own tokens. A region of
tensor parallelism is then entered by an all-gather (in place of f) and left by a reduce-scatter (in place of g's
all-reduce): together they send the bytes of the all-reduce, and outside of the regions activations are P times smaller.

Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2.
"""

from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from lib.devices import Group
from lib.parallel.sharding.autocast import as_products_take
from lib.parallel.sharding.conjugates import copy_to
from lib.parallel.sharding.first_order import first_order
from lib.parallel.sharding.named import named
from lib.parallel.sharding.shards import gather_pieces


@named
def gather_linear(x: Tensor, weight: Tensor, bias: Tensor | None, group: Group, dim: int) -> Tensor:
    """`F.linear(all_gather(x, group, dim), weight, bias)` that keeps only this device's piece of x for its backward.

    x (..., S/P, ..., in) Shard(dim) -> (..., S, ..., out/P) Shard(-1), for weight (out/P, in).
    Communication: forward an all-gather; backward an all-gather (the whole x once more, for the gradient of the weight)
    and a reduce-scatter (the gradient of x). Both run beside a matrix product.
    """
    return _GatherLinear.apply(*as_products_take(x, weight, bias), group, dim)


class _GatherLinear(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, group, dim):
        ctx.group, ctx.dim = group, dim
        ctx.save_for_backward(x, weight)
        whole = gather_pieces(x, group, dim, "gather_linear")  # (..., S, ..., in)  Replicate; used, and not kept
        return F.linear(whole, weight, bias)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        group, dim = ctx.group, ctx.dim
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_x = d_weight = d_bias = None
        if needs_weight:
            gathering = group.all_gather(x, dim, async_op=True)  # on its way while d_whole is computed
        if needs_x:
            d_whole = grad @ weight  # (..., S, ..., in)  Partial
            scattering = group.reduce_scatter(d_whole, dim, async_op=True)  # on its way while d_weight is computed
        if needs_weight:
            whole = gathering.wait()
            d_weight = grad.flatten(0, -2).T @ whole.flatten(0, -2)  # (out/P, in)  Shard(0)
        if needs_bias:
            d_bias = grad.flatten(0, -2).sum(0)  # (out/P,)  Shard(0)
        if needs_x:
            d_x = scattering.wait()  # (..., S/P, ..., in)  Shard(dim)
        return d_x, d_weight, d_bias, None, None


class SequenceLayerNorm(nn.LayerNorm):
    """LayerNorm of this device's tokens. Input and output (..., S/P, ..., hidden), sharded along the sequence.

    Each device sees only its own tokens, so the gradients of the weight and the bias are partial sums. `copy_to` adds
    them up: a replicated parameter enters a sharded region, and that is all that f is about. Without it, the devices'
    copies drift apart, and nothing complains.

    Options are those of `nn.LayerNorm`. Communication: forward nothing; backward an all-reduce of (hidden,) each for
    the weight and the bias.
    """

    def __init__(self, hidden: int, group: Group, eps: float = 1e-5, **options: Any):
        super().__init__(hidden, eps, **options)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """(..., S/P, ..., hidden) -> the same shape and placement."""
        weight, bias = (None if p is None else copy_to(p, self.group) for p in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class SequenceRMSNorm(nn.RMSNorm):
    """RMSNorm of this device's tokens, as `SequenceLayerNorm`: backward an all-reduce of (hidden,) for the weight."""

    def __init__(self, hidden: int, group: Group, eps: float | None = None, **options: Any):
        super().__init__(hidden, eps, **options)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """(..., S/P, ..., hidden) -> the same shape and placement."""
        weight = None if self.weight is None else copy_to(self.weight, self.group)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)
