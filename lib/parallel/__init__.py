"""How a model is split: one file per idea."""

from lib.parallel.attention import KVCache, ParallelSelfAttention, attend
from lib.parallel.block import ParallelBlock
from lib.parallel.clip import clip_gradients, gradient_norm
from lib.parallel.conjugates import (
    all_gather,
    all_to_all,
    copy_to,
    gather_from,
    reduce_from,
    reduce_scatter,
    scatter_to,
)
from lib.parallel.data import (
    average_gradients,
    averaging,
    broadcast_parameters,
    check_same_parameters,
    shard_batch,
)
from lib.parallel.dense import dense_state, load_dense
from lib.parallel.dropout import ParallelDropout
from lib.parallel.fully_sharded import FullySharded
from lib.parallel.heads import FusedHeads, ParallelQKV
from lib.parallel.linear import ColumnParallelLinear, RowParallelLinear
from lib.parallel.master import MasterWeights
from lib.parallel.optimizer_state import load_optimizer_state
from lib.parallel.placement import Partial, Placement, Replicate, Shard
from lib.parallel.sequence import SequenceLayerNorm, gather_linear
from lib.parallel.shard import shard, shard_sizes, unshard
from lib.parallel.tensor import ParallelMLP
from lib.parallel.vocabulary import (
    PaddedShard,
    VocabParallelEmbedding,
    padded_vocabulary,
    vocab_parallel_cross_entropy,
)
from lib.parallel.zero import ShardedOptimizer
from lib.parallel.zero_costs import ModelState, model_state, zero_bytes, zero_volume

__all__ = [
    "ColumnParallelLinear",
    "FullySharded",
    "FusedHeads",
    "KVCache",
    "MasterWeights",
    "ModelState",
    "PaddedShard",
    "ParallelBlock",
    "ParallelDropout",
    "ParallelMLP",
    "ParallelQKV",
    "ParallelSelfAttention",
    "Partial",
    "Placement",
    "Replicate",
    "RowParallelLinear",
    "SequenceLayerNorm",
    "Shard",
    "ShardedOptimizer",
    "VocabParallelEmbedding",
    "all_gather",
    "all_to_all",
    "attend",
    "average_gradients",
    "averaging",
    "broadcast_parameters",
    "check_same_parameters",
    "clip_gradients",
    "copy_to",
    "dense_state",
    "gather_from",
    "gather_linear",
    "gradient_norm",
    "load_dense",
    "load_optimizer_state",
    "model_state",
    "padded_vocabulary",
    "reduce_from",
    "reduce_scatter",
    "scatter_to",
    "shard",
    "shard_batch",
    "shard_sizes",
    "unshard",
    "vocab_parallel_cross_entropy",
    "zero_bytes",
    "zero_volume",
]
