"""A Llama whose activations are cut along the sequence wherever tensor parallelism has them whole.

The same three changes as for GPT-2 (see `lib.parallel.sequence.model`): all-gather for f, reduce-scatter for g, and f
for the parameters that every device uses for its own tokens, here the norms. Rotary positions are turned where the
heads are, and there every device has all tokens.
"""

from lib.parallel.llama.config import LlamaConfig
from lib.parallel.llama.layer import GatedMLP, LlamaAttention, LlamaBlock
from lib.parallel.llama.model import Llama
from lib.parallel.sequence.layers import SequenceRMSNorm
from lib.parallel.sequence.model import (
    SequenceColumnLinear,
    SequenceEmbedding,
    SequenceHead,
    SequenceQKV,
    SequenceRowLinear,
)


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


class SequenceLlama(SequenceHead, Llama):
    """A Llama whose activations are cut along the sequence wherever tensor parallelism has them whole."""

    Embedding, Block = SequenceEmbedding, SequenceLlamaBlock

    def rms_norm(self, config: LlamaConfig) -> SequenceRMSNorm:
        """An RMSNorm for this device's own tokens."""
        return SequenceRMSNorm(config.hidden, self.group, config.eps)
