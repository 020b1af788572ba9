"""A GPT whose sequence is cut over devices from end to end: context parallelism, beside tensor and data parallelism.

Between two attentions no token looks at another, so the devices of the context group do what data-parallel replicas do,
with other tokens: the same weights, another part of the loss. So their gradients are added up in the same way.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib.devices import Group
from lib.parallel.attention.cache import KVCache
from lib.parallel.context.attention import ContextAttention
from lib.parallel.data.average import average_gradients
from lib.parallel.gpt.block import Recompute
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT
from lib.parallel.sharding.conjugates import reduce_from
from lib.parallel.tensor.vocabulary import vocab_parallel_cross_entropy

IGNORED = -100


class ContextGPT(GPT):
    """A GPT on the tokens that `attention` gives this device; `group` splits its heads and its MLP.

    `everyone` are the devices with the same weights and other tokens, over which the loss is a mean: the context group,
    times the data group where there is one. Communication: what `attention` needs, two numbers for the loss, and the
    gradients: call `sum_context_gradients(model, everyone)` after the backward.

    Raises ValueError for dropout, and when the sequence is longer than the model's positions.
    """

    def __init__(
        self,
        config: GPTConfig,
        group: Group,
        attention: ContextAttention,
        everyone: Group | None = None,
        recompute: Recompute | None = None,
    ):
        if config.dropout:
            raise ValueError(f"ContextGPT: dropout={config.dropout}; set it to 0, attention has none over devices")
        if attention.length > config.positions:
            raise ValueError(
                f"ContextGPT: {attention} on a model of {config.positions} positions: it has none for the tokens from "
                f"{config.positions} on"
            )
        super().__init__(config, group, recompute, attention)
        self.attention = attention
        self.everyone = attention.group if everyone is None else everyone

    def forward(self, tokens: Tensor, targets: Tensor | None = None, caches: Sequence[KVCache] | None = None) -> Tensor:
        """tokens (batch, S), the whole sequence -> logits (batch, n, padded V/P) of this device's n tokens.

        With `targets` (batch, S): the mean loss over the tokens of `everyone`, a single number, Replicate. They must be
        shifted before: the token that follows may be on another device.
        """
        x = self.trunk(tokens, caches)
        if targets is None:
            return self.head(x)
        targets = self.attention.own(targets)  # (batch, n)
        losses = self.losses(x, targets)
        # The sum of all by the number of all. The mean of the devices' means would be another number.
        counted = torch.full((), targets.numel(), dtype=losses.dtype, device=losses.device)
        if not targets.is_meta:
            counted = (targets.long() != IGNORED).sum().to(losses.dtype)
        return reduce_from(losses.sum(), self.everyone) / self.everyone.all_reduce(counted)

    def losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """What the last block leaves, and the targets (batch, n) of this device's tokens -> the loss of each."""
        return vocab_parallel_cross_entropy(self.head(x), targets, self.group, self.config.vocabulary)

    def trunk(self, tokens: Tensor, caches: Sequence[KVCache] | None = None) -> Tensor:
        """(batch, S) -> (batch, n, hidden) of this device's tokens."""
        if caches is not None:
            raise ValueError(f"ContextGPT on rank {self.group.rank}: there is no cache for a sequence that is cut")
        return super().trunk(tokens)

    def embed(self, tokens: Tensor, seen: int = 0) -> Tensor:
        """(batch, S) -> (batch, n, hidden): each token at its true position."""
        places = self.attention.own(self.positions.weight[: self.attention.length], 0)  # (n, hidden)
        return self.embedding(self.attention.own(tokens)) + places

    def all_tokens(self, x: Tensor) -> Tensor:
        """(batch, n, hidden) -> (batch, S, hidden) Replicate, in the order of the sequence. No gradients."""
        group, cut = self.attention.group, self.attention.cut
        sizes = [sum(map(len, piece)) for piece in self.attention.everyone]
        return cut.whole(group.all_gather(x.detach(), 1).split(sizes, 1))


def sum_context_gradients(module: nn.Module, everyone: Group) -> None:
    """After the backward of a loss that is the mean over all tokens of `everyone`: each device has the gradient through
    its own tokens, and their sum is the whole. Partial -> Replicate. Communication: that of `average_gradients`."""
    average_gradients(module, everyone, share=1.0)
