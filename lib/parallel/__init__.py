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
from lib.parallel.linear import ColumnParallelLinear, RowParallelLinear
from lib.parallel.placement import Partial, Placement, Replicate, Shard
from lib.parallel.shard import shard, shard_sizes, unshard

__all__ = [
    "ColumnParallelLinear",
    "Partial",
    "Placement",
    "Replicate",
    "RowParallelLinear",
    "Shard",
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
    "reduce_from",
    "reduce_scatter",
    "scatter_to",
    "shard",
    "shard_batch",
    "shard_sizes",
    "unshard",
]
