"""GPT-2 on P devices: two embeddings, a stack of blocks, a last LayerNorm, and the embedding once more as the head.

    tokens -> embedding + positions -> block -> ... -> block -> norm -> head -> logits, or the loss

Radford et al. 2019 ("Language models are unsupervised multitask learners"); over devices: Shoeybi et al. 2019, arXiv
1909.08053, section 3.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lib.devices import Group
from lib.parallel.attention.cache import KVCache, check_caches
from lib.parallel.attention.kernels import Attend, attend
from lib.parallel.gpt.block import ParallelBlock, Recompute
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.head import VocabularyHead
from lib.parallel.sharding.dense import draw_dense
from lib.parallel.sharding.unfilled import Unfilled
from lib.parallel.tensor.dropout import ParallelDropout
from lib.parallel.tensor.vocabulary import VocabParallelEmbedding, mean_loss, vocab_parallel_cross_entropy


class GPT(VocabularyHead):
    """One device's part of a GPT, split over `group`. On one device it is the dense model.

    Communication, without the loss: forward, an all-reduce for the embedding and two for each layer; backward, two for
    each layer and one for the head; all of (batch, S, hidden). `gpt_synchronizations` lists them.

    `recompute` and `attend` are those of `ParallelBlock`. Weights start as the shards of one dense
    initialization, GPT-2's own, whatever the device count. Raises ValueError when the devices do not divide the heads.
    """

    Embedding, Block = VocabParallelEmbedding, ParallelBlock

    def __init__(self, config: GPTConfig, group: Group, recompute: Recompute | None = None, attend: Attend = attend):
        super().__init__()
        self.config, self.group, self._attend = config, group, attend
        sizes = config.hidden, config.heads
        options = {"dropout": config.dropout, "approximate": config.approximate}
        with Unfilled():  # the layers would draw numbers that are not GPT-2's
            self.embedding = self.Embedding(config.vocabulary, config.hidden, group)
            self.positions = nn.Embedding(config.positions, config.hidden)
            self.dropout = ParallelDropout(config.dropout, group, sharded=self.Block.cut_tokens)
            self.blocks = nn.ModuleList(
                self.Block(*sizes, group, **options, recompute=recompute, attend=attend) for _ in range(config.layers)
            )
            self.norm = self.layer_norm(config.hidden)
        initialize(self)

    def layer_norm(self, hidden: int) -> nn.LayerNorm:
        """A LayerNorm for the tokens that this device has."""
        return nn.LayerNorm(hidden)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, caches: Sequence[KVCache] | None = None) -> Tensor:
        """tokens (batch, S), integers, Replicate -> logits (batch, S, padded V/P) Shard(-1).

        With `targets` (batch, S): the mean loss, a single number, Replicate; a target of -100 does not count. With
        `caches`, one for each block: tokens are those that follow the ones seen so far.
        """
        logits = self.head(self.trunk(tokens, caches))
        if targets is None:
            return logits
        return mean_loss(vocab_parallel_cross_entropy(logits, targets, self.group, self.config.vocabulary), targets)

    def trunk(self, tokens: Tensor, caches: Sequence[KVCache] | None = None) -> Tensor:
        """(batch, S) -> (batch, S, hidden), what the last block leaves."""
        check_caches(caches, len(self.blocks), f"GPT on rank {self.group.rank} of {self.group.size}", "block")
        x = self.embed(tokens, 0 if caches is None else caches[0].seen)
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x = block(x, cache)  # (batch, S, hidden)  Replicate
        return x

    def embed(self, tokens: Tensor, seen: int = 0) -> Tensor:
        """(batch, S) at the positions from `seen` on -> (batch, S, hidden)."""
        self._check_tokens(tokens, seen)
        places = self.positions.weight[seen : seen + tokens.shape[1]]  # (S, hidden)  Replicate
        return self.dropout(self.embedding(tokens) + self.own_tokens(places))

    def head(self, x: Tensor) -> Tensor:
        """What the last block leaves -> logits (batch, S, padded V/P) Shard(-1)."""
        return self.enter(self.norm(x), self.head_weight)

    def own_tokens(self, x: Tensor) -> Tensor:
        """(..., S, hidden) Replicate -> the tokens of it that this device has between the layers: all."""
        return x

    @property
    def head_layer(self) -> nn.Module:
        """The embedding."""
        return self.embedding

    def _check_tokens(self, tokens: Tensor, seen: int) -> None:
        if tokens.ndim != 2 or seen + tokens.shape[1] > self.config.positions:
            raise ValueError(
                f"GPT on rank {self.group.rank} of {self.group.size}: tokens of shape {tuple(tokens.shape)} after "
                f"{seen} others; they must be (batch, S) with at most {self.config.positions} positions in all"
            )
        if getattr(self._attend, "cuts_sequence", False):
            raise ValueError(
                f"{type(self).__name__} on rank {self.group.rank} of {self.group.size}: {self._attend} sees a part of "
                "the sequence, and here positions are counted from 0. Take ContextGPT, which knows where its tokens are"
            )


def initialize(model: GPT) -> None:
    """GPT-2's initialization: normal with one deviation, and less where 2 x layers outputs add up on a residual."""
    config = model.config

    def deviation(name: str) -> float:
        last = name.endswith(("attention.out.weight", "mlp.down.weight"))
        return config.deviation / (math.sqrt(2 * config.layers) if last else 1)

    draw_dense(model, config.shapes(), model.group, deviation)
