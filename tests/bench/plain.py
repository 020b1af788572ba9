"""Tensor parallelism on plain `torch.distributed`: what real processes and PyTorch's own simulation run, beside ours.

The modules take their weights from a dense model through `cut(whole, dim)`: this device's piece along a dim, or the
whole where the dim is None.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from bench.dense import DenseAttention, DenseBlock
from lib import attend

Cut = Callable[[Tensor, int | None], nn.Parameter]
Split = Callable[[nn.Module, Cut], nn.Module]


def pieces(whole: Tensor, dim: int | None, size: int) -> list[Tensor]:
    """What each of `size` devices holds of a dense weight, each in memory of its own."""
    views = [whole] * size if dim is None else whole.tensor_split(size, dim)
    return [view.detach().clone(memory_format=torch.contiguous_format) for view in views]


class CopyTo(Function):
    """Forward identity, backward all-reduce."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad


class ReduceFrom(Function):
    """Forward all-reduce, backward identity."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad


class PlainMLP(nn.Module):
    """Columns, then rows: one all-reduce forward, one backward."""

    def __init__(self, dense: nn.Sequential, cut: Cut):
        super().__init__()
        up, _, down = dense
        self.up, self.up_bias = cut(up.weight, 0), cut(up.bias, 0)
        self.down, self.down_bias = cut(down.weight, 1), cut(down.bias, None)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(F.linear(CopyTo.apply(x), self.up, self.up_bias))  # (B, T, hidden/P)  Shard(-1)
        return ReduceFrom.apply(F.linear(y, self.down)) + self.down_bias  # (B, T, D)  Replicate


class PlainAttention(nn.Module):
    """Whole heads on each device: one all-reduce forward, one backward."""

    def __init__(self, dense: DenseAttention, cut: Cut):
        super().__init__()
        self.head_size = dense.head_size
        weight, bias = (whole.unflatten(0, (3, -1)) for whole in (dense.qkv.weight, dense.qkv.bias))  # q, k and v
        self.qkv, self.qkv_bias = cut(weight, 1), cut(bias, 1)  # (3, D/P, D), (3, D/P)  Shard(1)
        self.out, self.out_bias = cut(dense.out.weight, 1), cut(dense.out.bias, None)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(CopyTo.apply(x), self.qkv.flatten(0, 1), self.qkv_bias.flatten())  # (B, T, 3D/P)  Shard(-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for part in y.chunk(3, -1))
        heads = attend(q, k, v)  # (B, heads/P, T, d)  Shard(1)
        return ReduceFrom.apply(F.linear(heads.transpose(1, 2).flatten(2), self.out)) + self.out_bias


class PlainBlock(nn.Module):
    """The pre-norm block."""

    def __init__(self, dense: DenseBlock, cut: Cut):
        super().__init__()
        self.norm1, self.attention = plain_norm(dense.norm1, cut), PlainAttention(dense.attention, cut)
        self.norm2, self.mlp = plain_norm(dense.norm2, cut), PlainMLP(dense.mlp, cut)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))  # (B, T, D)  Replicate
        return x + self.mlp(self.norm2(x))


def plain_norm(dense: nn.LayerNorm, cut: Cut) -> nn.LayerNorm:
    norm = nn.LayerNorm(dense.normalized_shape)
    norm.weight, norm.bias = cut(dense.weight, None), cut(dense.bias, None)
    return norm
