"""Attention with all keys and values on every device: one all-gather before it, one reduce-scatter behind.

Simpler than a ring, and any mask will do, since each device sees all keys at once. The price: every device holds the
keys and values of the whole sequence, and nothing can be computed while they come. With few heads of keys and values
they are small: Llama 3 does it so (Llama Team 2024, arXiv 2407.21783, section 3.3.2).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.parallel.context.attention import ContextAttention
from lib.parallel.context.blocks import blocks_between
from lib.parallel.context.softmax import attend_blocks
from lib.parallel.sharding.conjugates import all_gather


class GatheredAttention(ContextAttention):
    """Communication: an all-gather of keys and values forward, a reduce-scatter of their gradients backward; pieces
    that are shorter than the longest are filled up with zeros for the journey."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """See `ContextAttention`."""
        most = max(sum(map(len, piece)) for piece in self.everyone)
        kv = F.pad(torch.stack([k, v]), (0, 0, 0, most - k.shape[2]))  # (2, batch, kv_heads, most, d)
        stretches = []
        for piece, rows in zip(self.everyone, all_gather(kv, self.group, 3).split(most, 3), strict=True):
            parts = rows[..., : sum(map(len, piece)), :].split([len(part) for part in piece], 3)
            stretches += zip(piece, parts, strict=True)
        stretches.sort(key=lambda stretch: stretch[0].start)  # early keys first: what is seen is then in few blocks
        k, v = torch.cat([part for _, part in stretches], 3)  # (batch, kv_heads, S, d)  Replicate
        keys = tuple(part for part, _ in stretches)
        return attend_blocks(q, k, v, blocks_between(self.places(), keys, causal, self.documents))
