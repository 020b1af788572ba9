"""Where every language model ends: logits over a vocabulary that is cut, and what is known of the next token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.devices import Group
from lib.parallel.attention.cache import KVCache
from lib.parallel.sharding.conjugates import copy_to, gather_from
from lib.parallel.sharding.cuts import declare_cuts


class VocabularyHead(nn.Module):
    """What a GPT and a Llama do alike behind their last layer.

    The model has besides: `config` with its `vocabulary`, the `group` over which that is cut, `norm` (the last one),
    `head_layer`, whose weight (padded V/P, hidden) Shard(0) has a row for each token, and the `trunk` that leads there.
    """

    config: Any
    group: Group
    head_layer: nn.Module

    @property
    def head_weight(self) -> Tensor:
        """(padded V/P, hidden) Shard(0). Its layer may never be called itself, so what that does first is done here."""
        declare_cuts(self.head_layer)
        return self.head_layer.weight

    def all_tokens(self, x: Tensor) -> Tensor:
        """What the last layer leaves -> (batch, S, hidden) Replicate."""
        return x

    def enter(self, x: Tensor, weight: Tensor) -> Tensor:
        """Into the sharded head, by f: (batch, S, hidden) Replicate -> (batch, S, padded V/P) Shard(-1)."""
        return F.linear(copy_to(x, self.group), weight)

    @torch.no_grad()
    def next_logits(self, tokens: Tensor, caches: Sequence[KVCache] | None = None) -> Tensor:
        """(batch, S) -> (batch, padded V/P) Shard(-1): for the one token that follows, padding -inf. No gradients."""
        x = self.all_tokens(self.trunk(tokens, caches))  # (batch, S, hidden)  Replicate
        logits = F.linear(self.norm(x[:, -1]), self.head_weight)  # (batch, padded V/P)  Shard(-1)
        width = logits.shape[-1]
        padding = self.group.rank * width + torch.arange(width, device=logits.device) >= self.config.vocabulary
        return logits.masked_fill(padding, -torch.inf)

    def whole_logits(self, logits: Tensor) -> Tensor:
        """(..., padded V/P) Shard(-1) -> (..., V) Replicate, by an all-gather. Few need it: not the loss."""
        return gather_from(logits, self.group, -1)[..., : self.config.vocabulary]
