"""A Llama on P devices: an embedding, a stack of layers, a last RMSNorm, and a head that is a matrix of its own.

    tokens -> embedding -> layer -> ... -> layer -> norm -> head -> logits, or the loss

No positions are added to the embedding: every layer turns its queries and keys.

Touvron et al. 2023, arXiv 2302.13971; over devices as GPT-2: Shoeybi et al. 2019, arXiv 1909.08053, section 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib.devices import Group
from lib.parallel.attention.cache import KVCache, check_caches
from lib.parallel.attention.kernels import Attend, attend
from lib.parallel.gpt.block import Recompute
from lib.parallel.gpt.head import VocabularyHead
from lib.parallel.llama.config import LlamaConfig
from lib.parallel.llama.layer import LlamaBlock
from lib.parallel.llama.rotary import turn_of
from lib.parallel.sharding.dense import draw_dense
from lib.parallel.sharding.unfilled import Unfilled
from lib.parallel.tensor.vocabulary import VocabParallelEmbedding, mean_loss, vocab_parallel_cross_entropy


class Llama(VocabularyHead):
    """One device's part of a Llama, split over `group`. On one device it is the dense model.

    Communication: that of `GPT`, call by call. `recompute` and `attend` are those of `LlamaBlock`. Weights start as the
    shards of one dense initialization, whatever the device count. Raises ValueError when the devices do not divide the
    heads or the MLP.
    """

    Embedding, Block = VocabParallelEmbedding, LlamaBlock

    def __init__(self, config: LlamaConfig, group: Group, recompute: Recompute | None = None, attend: Attend = attend):
        super().__init__()
        self.config, self.group, self._attend = config, group, attend
        with Unfilled():  # the layers would draw numbers that are not Llama's
            self.embedding = self.Embedding(config.vocabulary, config.hidden, group)
            self.blocks = nn.ModuleList(self.Block(config, group, recompute, attend) for _ in range(config.layers))
            self.norm = self.rms_norm(config)
            # Its rows belong to tokens, as those of the embedding, and are cut as these. Tied, they are the same.
            self.head = None if config.tied else self.Embedding(config.vocabulary, config.hidden, group)
        draw_dense(self, config.shapes(), group, lambda name: config.deviation)

    def rms_norm(self, config: LlamaConfig) -> nn.RMSNorm:
        """An RMSNorm for the tokens that this device has."""
        return nn.RMSNorm(config.hidden, config.eps)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        caches: Sequence[KVCache] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """tokens (batch, S), integers, Replicate -> logits (batch, S, padded V/P) Shard(-1).

        With `targets` (batch, S): the mean loss, a single number, Replicate; a target of -100 does not count. With
        `caches`, one for each layer: tokens are those that follow the ones seen so far. `positions` (S,) say where the
        tokens stand in the whole text, where that is not one after the other from the first, or from the last seen.
        """
        logits = self.logits(self.trunk(tokens, caches, positions))
        if targets is None:
            return logits
        return mean_loss(vocab_parallel_cross_entropy(logits, targets, self.group, self.config.vocabulary), targets)

    def trunk(self, tokens: Tensor, caches: Sequence[KVCache] | None = None, positions: Tensor | None = None) -> Tensor:
        """(batch, S) -> (batch, S, hidden), what the last layer leaves."""
        check_caches(caches, len(self.blocks), f"Llama on rank {self.group.rank} of {self.group.size}", "layer")
        positions = self._positions(tokens, 0 if caches is None else caches[0].seen, positions)
        x = self.embedding(tokens)  # (batch, S, hidden)  Replicate
        cos, sin = turn_of(positions, self.config.head_size, self.config.theta, self.config.scaling)
        turn = cos.to(x.dtype), sin.to(x.dtype)  # once, for all layers
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x = block(x, turn, cache)  # (batch, S, hidden)  Replicate
        return x

    def logits(self, x: Tensor) -> Tensor:
        """What the last layer leaves -> logits (batch, S, padded V/P) Shard(-1)."""
        return self.enter(self.norm(x), self.head_weight)

    @property
    def head_layer(self) -> nn.Module:
        """The head's own, or the embedding."""
        return self.embedding if self.head is None else self.head

    def _positions(self, tokens: Tensor, seen: int, positions: Tensor | None) -> Tensor:
        """(S,), where the tokens stand. ValueError where the model has no such positions."""
        where = f"Llama on rank {self.group.rank} of {self.group.size}: tokens of shape {tuple(tokens.shape)}"
        if tokens.ndim != 2:
            raise ValueError(f"{where} must be (batch, S)")
        if positions is None and getattr(self._attend, "cuts_sequence", False):
            raise ValueError(
                f"{where}, and {self._attend} sees a part of the sequence: say with positions=... where these tokens "
                "stand in it (see its places()). Counted from 0, they would be wrong"
            )
        if positions is None:
            last = seen + tokens.shape[1] - 1
            positions = torch.arange(seen, last + 1, device=tokens.device)
        elif positions.shape != tokens.shape[1:]:
            raise ValueError(f"{where} need positions of shape {tuple(tokens.shape[1:])}, not {tuple(positions.shape)}")
        else:
            last = 0 if positions.is_meta or not positions.numel() else int(positions.max())
        if last >= self.config.positions:
            raise ValueError(
                f"{where} reach position {last}; the model has {self.config.positions}, from 0 on{self._seen()}"
            )
        return positions

    def _seen(self) -> str:
        """Why it has no more positions, where that is not clear."""
        if self.config.window is None:
            return ""
        return (
            f". It was trained with a sliding window of {self.config.window} (sliding_window): beyond it, a token "
            "must not see all tokens before it, and here it would. Take a shorter text"
        )
