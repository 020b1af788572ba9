"""The whole difference between tensor parallelism and tensor with sequence parallelism, class by class.

    f, an identity whose gradients are all-reduced    becomes   an all-gather along the sequence
    g, an all-reduce                                  becomes   a reduce-scatter along the sequence
    a parameter that all devices use for all tokens   becomes   one that each uses for its own tokens: f, once more

Each class is a plain layer in which these places are overridden. Input and output of all are Shard(-2): in a tensor
(..., S, hidden), the tokens are cut.
"""

from torch import Tensor

from lib.parallel.attention.attention import ParallelSelfAttention
from lib.parallel.attention.heads import ParallelQKV
from lib.parallel.gpt.block import ParallelBlock
from lib.parallel.gpt.head import VocabularyHead
from lib.parallel.gpt.model import GPT
from lib.parallel.sequence.layers import SequenceLayerNorm, gather_linear
from lib.parallel.sharding.conjugates import copy_to, gather_from, reduce_scatter, scatter_to
from lib.parallel.sharding.linear import ColumnParallelLinear, RowParallelLinear
from lib.parallel.tensor.mlp import ParallelMLP
from lib.parallel.tensor.vocabulary import VocabParallelEmbedding

TOKENS = -2  # the dim of the sequence in (..., S, hidden)


class SequenceColumnLinear(ColumnParallelLinear):
    """Input (..., S/P, in) Shard(-2). Communication: an all-gather forward; backward another and a reduce-scatter."""

    def enter(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., S/P, in) Shard(-2) -> (..., S, out/P) Shard(-1)."""
        return gather_linear(x, weight, bias, self.group, TOKENS)


class SequenceRowLinear(RowParallelLinear):
    """Output (..., S/P, out) Shard(-2). Communication: a reduce-scatter forward; backward an all-gather, and an
    all-reduce of the bias' gradient."""

    def leave(self, y: Tensor) -> Tensor:
        """(..., S, out) Partial -> (..., S/P, out) Shard(-2)."""
        return reduce_scatter(y, self.group, TOKENS)

    def shared(self, parameter: Tensor) -> Tensor:
        """Every device uses it for its own tokens only, so its gradients are partial sums: f makes them whole."""
        return copy_to(parameter, self.group)


class SequenceMLP(ParallelMLP):
    """Communication: an all-gather and a reduce-scatter in the place of each all-reduce, and one more all-gather
    backward (see `gather_linear`)."""

    Column, Row = SequenceColumnLinear, SequenceRowLinear


class SequenceQKV(SequenceColumnLinear, ParallelQKV):
    """The fused projection of `ParallelQKV`, entered as `SequenceColumnLinear` is."""


class SequenceSelfAttention(ParallelSelfAttention):
    """Communication: as `SequenceMLP`. The heads see all tokens, so nothing changes between the projections."""

    QKV, Row = SequenceQKV, SequenceRowLinear


class SequenceBlock(ParallelBlock):
    """LayerNorm, dropout and residual of each device's own tokens. Communication: 2 all-gathers and 2 reduce-scatters
    forward; backward as many, 2 more all-gathers, and the small gradients of LayerNorm and bias."""

    Attention, MLP = SequenceSelfAttention, SequenceMLP
    cut_tokens = True

    def layer_norm(self, hidden: int) -> SequenceLayerNorm:
        """A LayerNorm for this device's own tokens."""
        return SequenceLayerNorm(hidden, self.group)


class SequenceEmbedding(VocabParallelEmbedding):
    """Output (batch, S/P, hidden) Shard(-2). Communication: a reduce-scatter forward, an all-gather backward."""

    def leave(self, y: Tensor) -> Tensor:
        """(batch, S, hidden) Partial -> (batch, S/P, hidden) Shard(-2)."""
        return reduce_scatter(y, self.group, TOKENS)


class SequenceHead(VocabularyHead):
    """The end of a model whose tokens are cut over the devices, up to the last norm."""

    def all_tokens(self, x: Tensor) -> Tensor:
        """(batch, S/P, hidden) Shard(-2) -> (batch, S, hidden) Replicate: one device has the last token."""
        return gather_from(x, self.group, TOKENS)

    def enter(self, x: Tensor, weight: Tensor) -> Tensor:
        """(batch, S/P, hidden) Shard(-2) -> (batch, S, padded V/P) Shard(-1)."""
        return gather_linear(x, weight, None, self.group, TOKENS)


class SequenceGPT(SequenceHead, GPT):
    """A GPT whose activations are cut along the sequence wherever tensor parallelism has them whole."""

    Embedding, Block = SequenceEmbedding, SequenceBlock

    def layer_norm(self, hidden: int) -> SequenceLayerNorm:
        """A LayerNorm for this device's own tokens."""
        return SequenceLayerNorm(hidden, self.group)

    def own_tokens(self, x: Tensor) -> Tensor:
        """(..., S, hidden) Replicate -> (..., S/P, hidden) Shard(-2); the gradient is whole again."""
        return scatter_to(x, self.group, TOKENS)
