"""Attention of heads that do not talk, in two ways: every step written out, or one fused kernel of PyTorch's.

Either is handed to `ParallelSelfAttention`; so is whatever else has the same arguments. Where that works on a part of a
sequence, it says so by `cuts_sequence = True`: a model must know, since it counts positions.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.parallel.tensor.dropout import ParallelDropout

Attend = Callable[[Tensor, Tensor, Tensor, bool, ParallelDropout], Tensor]  # q, k, v, causal, dropout -> (like q)


def attend(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = True, dropout: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """Attention of heads that do not talk: q (batch, heads, S, d); k, v (batch, kv_heads, seen, d), the last position
    of q standing at the last of k. Returns (batch, heads, S, d). Any heads, on any device: nothing is sent.
    """
    _check(q, k, v, causal)
    copies = q.shape[1] // k.shape[1]
    if copies > 1:  # heads that share keys and values
        k, v = k.repeat_interleave(copies, 1), v.repeat_interleave(copies, 1)
    # The scores are scaled, not q: a scaled copy of q would be kept for the backward beside q, k and v.
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (batch, heads, S, seen)
    if causal:
        # Added, not filled in: addition keeps nothing for the backward.
        scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=q.dtype, device=q.device).triu(
            1 + scores.shape[-1] - scores.shape[-2]
        )
    weights = dropout(scores.softmax(-1))  # (batch, heads, S, seen)
    return weights @ v


def fused_attend(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = True, dropout: ParallelDropout | None = None
) -> Tensor:
    """The same result as `attend`'s, by `scaled_dot_product_attention`: no scores are kept for the backward.

    Its kernels compute the scores piece by piece and compute them anew in the backward (FlashAttention: Dao et al.
    2022, arXiv 2205.14135). With dropout a CPU has no such kernel, and PyTorch writes the steps out.
    """
    _check(q, k, v, causal)
    ahead = k.shape[-2] - q.shape[-2]  # positions that only k has: they come first
    mask = None
    if causal and ahead:  # PyTorch's own causal mask would put the first position of q at the first of k
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(ahead)
    causal = causal and not ahead
    share = q.shape[1] != k.shape[1]  # heads that share keys and values
    if dropout is None or not dropout.training or dropout.p == 0:
        if q.is_meta:  # there PyTorch would write the steps out, and scores would be kept that a device never has
            mask = None if mask is None else mask.to(q.dtype)
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask)[0]
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=share)
    with dropout.random():
        return F.scaled_dot_product_attention(q, k, v, mask, dropout.p, causal, enable_gqa=share)


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
    """ValueError where heads would be broadcast or left out, or a query would see no key and give no number."""
    if k.shape[:-1] != v.shape[:-1] or q.shape[0] != k.shape[0] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"attention of q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: batches must be equal, and the "
            "heads of q a multiple of those of k and v"
        )
    if causal and q.shape[-2] > k.shape[-2]:
        raise ValueError(
            f"attention of {q.shape[-2]} queries to {k.shape[-2]} keys: the last of both stand at the same position, "
            "so the first queries would see nothing; pass causal=False, or all keys"
        )
