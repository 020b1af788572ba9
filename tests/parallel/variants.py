"""The same layer with and without sequence parallelism, for tests that compare the two."""

from lib.parallel.attention.attention import ParallelSelfAttention
from lib.parallel.gpt.block import ParallelBlock
from lib.parallel.gpt.model import GPT
from lib.parallel.sequence import model
from lib.parallel.sharding.linear import ColumnParallelLinear, RowParallelLinear
from lib.parallel.tensor.mlp import ParallelMLP
from lib.parallel.tensor.vocabulary import VocabParallelEmbedding

SEQUENCE = {
    ColumnParallelLinear: model.SequenceColumnLinear,
    RowParallelLinear: model.SequenceRowLinear,
    ParallelMLP: model.SequenceMLP,
    ParallelSelfAttention: model.SequenceSelfAttention,
    ParallelBlock: model.SequenceBlock,
    VocabParallelEmbedding: model.SequenceEmbedding,
    GPT: model.SequenceGPT,
}


def variant(plain, sequence):
    """`plain`, or with `sequence` (True, or the dim of the sequence) the class that cuts its tokens."""
    return plain if sequence is None or sequence is False else SEQUENCE[plain]
