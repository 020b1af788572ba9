"""A Llama whose activations are cut along the sequence wherever tensor parallelism has them whole.

The same three changes as for GPT-2 (see `lib.parallel.sequence.model`): all-gather for f, reduce-scatter for g, and f
for the parameters that every device uses for its own tokens, here the norms. Rotary positions are turned where the
heads are, and there every device has all tokens.
"""

from torch import Tensor

from lib.parallel.llama.config import LlamaConfig
from lib.parallel.llama.layer import GatedMLP, LlamaAttention, LlamaBlock
from lib.parallel.llama.model import Llama
from lib.parallel.sequence.layers import SequenceRMSNorm, gather_linear
from lib.parallel.sequence.model import TOKENS, SequenceColumnLinear, SequenceEmbedding, SequenceQKV, SequenceRowLinear
from lib.parallel.sharding.conjugates import gather_from


class SequenceLlamaAttention(LlamaAttention):
    """Communication: as `SequenceSelfAttention`."""

    QKV, Row = SequenceQKV, SequenceRowLinear


class SequenceGatedMLP(GatedMLP):
    """Communication: as `SequenceMLP`."""

    Column, Row = SequenceColumnLinear, SequenceRowLinear


class SequenceLlamaBlock(LlamaBlock):
    """Input and output (batch, S/P, hidden) Shard(-2). Communication: as `SequenceBlock`; of small gradients, only
    those of the two norms."""

    Attention, MLP = SequenceLlamaAttention, SequenceGatedMLP

    def rms_norm(self, config: LlamaConfig) -> SequenceRMSNorm:
        """An RMSNorm for this device's own tokens."""
        return SequenceRMSNorm(config.hidden, self.group, config.eps)


class SequenceLlama(Llama):
    """A Llama whose activations are cut along the sequence wherever tensor parallelism has them whole."""

    Embedding, Block = SequenceEmbedding, SequenceLlamaBlock

    def rms_norm(self, config: LlamaConfig) -> SequenceRMSNorm:
        """An RMSNorm for this device's own tokens."""
        return SequenceRMSNorm(config.hidden, self.group, config.eps)

    def all_tokens(self, x: Tensor) -> Tensor:
        """(batch, S/P, hidden) Shard(-2) -> (batch, S, hidden) Replicate: one device has the last token."""
        return gather_from(x, self.group, TOKENS)

    def enter(self, x: Tensor, weight: Tensor) -> Tensor:
        """(batch, S/P, hidden) Shard(-2) -> (batch, S, padded V/P) Shard(-1)."""
        return gather_linear(x, weight, None, self.group, TOKENS)
