"""How a model is split: one file per idea."""

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
from lib.parallel.fully_sharded import FullySharded
from lib.parallel.linear import ColumnParallelLinear, RowParallelLinear
from lib.parallel.master import MasterWeights
from lib.parallel.optimizer_state import load_optimizer_state
from lib.parallel.placement import Partial, Placement, Replicate, Shard
from lib.parallel.shard import shard, shard_sizes, unshard
from lib.parallel.zero import ShardedOptimizer
from lib.parallel.zero_costs import ModelState, model_state, zero_bytes, zero_volume

__all__ = [
    "ColumnParallelLinear",
    "FullySharded",
    "MasterWeights",
    "ModelState",
    "Partial",
    "Placement",
    "Replicate",
    "RowParallelLinear",
    "Shard",
    "ShardedOptimizer",
    "all_gather",
    "all_to_all",
    "average_gradients",
    "averaging",
    "broadcast_parameters",
    "check_same_parameters",
    "clip_gradients",
    "copy_to",
    "gather_from",
    "gradient_norm",
    "load_optimizer_state",
    "model_state",
    "reduce_from",
    "reduce_scatter",
    "scatter_to",
    "shard",
    "shard_batch",
    "shard_sizes",
    "unshard",
    "zero_bytes",
    "zero_volume",
]
