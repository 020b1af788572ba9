"""Ring attention on many devices against dense attention: the same work in blocks, and the merging of them."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.plan import Plan, progress
from bench.rounds import Work, compare, time_dense, time_simulated
from lib import CutTokens, Group, RingAttention
from lib.devices.counts import counted

TOKENS = -2  # the dim of (3, batch, heads, tokens, d) that is cut


class DenseAttention(nn.Module):
    """Causal attention by PyTorch's fused kernel, of queries, keys and values in one tensor."""

    def forward(self, qkv: Tensor) -> Tensor:
        """(3, batch, heads, tokens, d) -> (batch, heads, tokens, d)."""
        return F.scaled_dot_product_attention(*qkv, is_causal=True)


class DeviceAttention(nn.Module):
    """The same for one device's tokens."""

    def __init__(self, ring: RingAttention):
        super().__init__()
        self.ring = ring

    def forward(self, qkv: Tensor) -> Tensor:
        """(3, batch, heads, tokens/P, d) -> (batch, heads, tokens/P, d)."""
        return self.ring(*qkv)


def dense_attention(plan: Plan) -> Work:
    """The dense attention, its input, and the gradient that comes from above."""
    torch.manual_seed(0)
    qkv, above = torch.randn(4, 1, plan.heads, plan.long_text, plan.width // plan.heads).split([3, 1])
    return DenseAttention(), qkv, above[0]


def device_attention(order: str, group: Group, model: nn.Module, qkv: Tensor, above: Tensor) -> Work:
    """The same for one device."""
    ring, cut = RingAttention(group, qkv.shape[TOKENS], order), CutTokens(order, TOKENS)
    return DeviceAttention(ring), *(cut.piece(x, group.size, group.rank).contiguous() for x in (qkv, above))


def measure(plan: Plan, threads: int) -> list[dict]:
    """One dict per direction and variant, with the ratio to the dense time of the same round."""
    torch.set_num_threads(threads)
    dense, rows = dense_attention(plan), []
    variants = {("dense", 1): partial(time_dense, dense)}
    for order in ("zigzag", "striped", "contiguous"):
        split = partial(device_attention, order)
        variants |= {(f"ring, {order}", n): partial(time_simulated, n, split, dense) for n in plan.in_ring}
    for backward in (False, True):
        progress(f"  attention, forward{' + backward' * backward}, {counted(threads, 'thread')} ...")
        rows += compare(variants, backward, plan, work="attention", threads=threads)
    return rows
