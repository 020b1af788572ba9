"""Attention to a part of the keys, and how two parts become one: the online softmax.

A softmax needs the sum over all keys in its denominator. A part of the keys gives a part of it. So beside the output,
an average over these keys alone, we keep how large the denominator was, as a logarithm: lse = log sum exp(scores).
The average over both parts is then the average of the averages, each weighted by its denominator:

    share = exp(lse_b) / (exp(lse_a) + exp(lse_b)) = sigmoid(lse_b - lse_a)      out = out_a + share (out_b - out_a)

Nothing is ever exponentiated but a difference, so large scores do no harm. What sees nothing has lse = -inf.
Milakov and Gimelshein 2018, arXiv 1805.02867; blockwise: Rabe and Staats 2021, arXiv 2112.05682.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function

from lib.parallel.context.blocks import Block
from lib.parallel.sharding.first_order import first_order

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # SDPA's kernel: it also gives lse
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
FUSED_ON = ("cpu", "meta")
Part = tuple[Tensor, Tensor]  # out (batch, heads, n, d), lse (batch, heads, n), in float32 or more


def merge_parts(a: Part, b: Part) -> Part:
    """Attention to the keys of both parts, from attention to each. In any order, and as often as you like."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    share = torch.sigmoid(lse_b - lse_a).nan_to_num(0.0)  # -inf - -inf: a query that sees nothing in either
    return torch.lerp(out_a, out_b.to(out_a.dtype), share.unsqueeze(-1)), torch.logaddexp(lse_a, lse_b)


def attend_part(q: Tensor, k: Tensor, v: Tensor, seen: str | Tensor = "all") -> Part:
    """Attention of q (batch, heads, n, d) to the keys k, v (batch, kv_heads, m, d) alone, and its log-sum-exp.

    `seen` is that of a `Block`. On a CPU by PyTorch's fused kernel, which keeps no scores; elsewhere written out.
    """
    mask = _mask(seen, q)
    if q.device.type in FUSED_ON:
        out, lse = _fused(*_in_rows(q, k, v), 0.0, seen == "triangle" if mask is None else False, attn_mask=mask)
    else:
        scores = _scores(q, k, seen)
        lse = scores.logsumexp(-1)
        out = _weights(scores, lse).to(v.dtype) @ _repeated(v, q)
    if mask is not None:  # the kernel gives 0 for a row that sees nothing
        lse = lse.masked_fill(~seen.to(lse.device).any(-1), -torch.inf)
    return out, lse


def attend_part_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, seen: str | Tensor = "all"
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v through these keys. `out` and `lse` are those of ALL keys: with them, the weights of
    this block come out as they are in the whole softmax, and the gradients of all blocks add up."""
    if q.device.type in FUSED_ON:
        mask = _mask(seen, q)
        causal = seen == "triangle" if mask is None else False
        return _fused_backward(*_in_rows(grad, q, k, v, out), lse, 0.0, causal, attn_mask=mask)
    weights = _weights(_scores(q, k, seen), lse)  # (batch, heads, n, m)
    delta = (grad * out).sum(-1, keepdim=True)  # what the softmax subtracts: it is the same for all keys
    inner = weights * (grad @ _repeated(v, q).mT - delta) / math.sqrt(q.shape[-1])
    dk, dv = inner.mT @ q, weights.mT @ grad
    return inner @ _repeated(k, q), *(x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))


def _in_rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """With the numbers of a head next to each other: the kernel reads on from the first, and does not ask."""
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


def _mask(seen: str | Tensor, q: Tensor) -> Tensor | None:
    if not isinstance(seen, Tensor):
        return None
    return torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen.to(q.device), -torch.inf)


def _scores(q: Tensor, k: Tensor, seen: str | Tensor) -> Tensor:
    scores = q @ _repeated(k, q).mT / math.sqrt(q.shape[-1])  # (batch, heads, n, m)
    if isinstance(seen, Tensor):
        return scores + _mask(seen, scores)
    if seen == "triangle":
        return scores + torch.full(scores.shape[-2:], -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    return scores


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    return (scores - lse.masked_fill(lse == -torch.inf, 0).unsqueeze(-1)).exp()


def _repeated(k: Tensor, q: Tensor) -> Tensor:
    """For each head of q the head of k that it shares."""
    return k if k.shape[1] == q.shape[1] else k.repeat_interleave(q.shape[1] // k.shape[1], 1)


class Running:
    """Attention of q to the keys seen so far; `add` merges the blocks of some more into it."""

    def __init__(self, q: Tensor):
        self.q = q
        self.total: Part | None = None  # nothing seen yet

    def add(self, k: Tensor, v: Tensor, blocks: Sequence[Block]) -> None:
        """Merges attention to these keys, of which the queries see `blocks`."""
        for block in blocks:
            rows, keys = (..., block.queries, slice(None)), (..., block.keys, slice(None))
            part = attend_part(self.q[rows], k[keys], v[keys], block.seen)
            every_row = block.queries == slice(0, self.q.shape[-2])
            if self.total is None and every_row:
                self.total = part[0].to(part[1].dtype), part[1]  # the first: there is nothing to merge with
            elif every_row:
                self.total = merge_parts(self.total, part)
            else:
                self.total = self.total or self._nothing(part[1].dtype)
                out, lse = self.total[0][rows], self.total[1][..., block.queries]
                for old, new in zip((out, lse), merge_parts((out, lse), part), strict=True):
                    old.copy_(new)

    def result(self) -> Part:
        """out (batch, heads, n, d) in the type of q, and lse (batch, heads, n)."""
        out, lse = self.total or self._nothing(self.q.dtype)
        return out.to(self.q.dtype), lse

    def _nothing(self, dtype: torch.dtype) -> Part:
        return torch.zeros_like(self.q, dtype=dtype), self.q.new_full(self.q.shape[:-1], -torch.inf, dtype=dtype)


def add_gradients(
    grads: tuple[Tensor, Tensor, Tensor],
    above: Tensor,
    qkv: tuple[Tensor, Tensor, Tensor],
    whole: Part,
    blocks: Sequence[Block],
) -> None:
    """Adds to the gradients (of q, of k, of v) what comes through `blocks`. `above` is the gradient of the output."""
    (dq, dk, dv), (q, k, v), (out, lse) = grads, qkv, whole
    for block in blocks:
        rows, keys = (..., block.queries, slice(None)), (..., block.keys, slice(None))
        mine = lse[..., block.queries].contiguous()
        found = attend_part_backward(above[rows], q[rows], k[keys], v[keys], out[rows], mine, block.seen)
        for to, more in zip((dq[rows], dk[keys], dv[keys]), found, strict=True):
            to.add_(more)


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Attention of the queries and keys of one device, of which `blocks` are seen. Nothing is sent."""
    return _Blocks.apply(q, k, v, blocks)


class _Blocks(Function):
    @staticmethod
    def forward(ctx, q, k, v, blocks):
        running = Running(q)
        running.add(k, v, blocks)
        out, lse = running.result()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.blocks = blocks
        return out

    @staticmethod
    @first_order
    def backward(ctx, above):
        q, k, v, out, lse = ctx.saved_tensors
        grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        add_gradients(grads, above, (q, k, v), (out, lse), ctx.blocks)
        return *grads, None
