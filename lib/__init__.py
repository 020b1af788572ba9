"""One Model, Many Devices: simulated devices, models that are split over them, and what it costs.

`lib.devices` says how devices run and talk, `lib.parallel` how a model is split (a room per idea), `lib.costs` what it
costs, `lib.real` how the same programs run as real processes, `lib.guest` runs the programs of others,
and `lib.examples` has programs that use all of it. Imports only go down, in this order. Readers find every name here:
`from lib import Cluster, shard`.
"""

from lib.costs.activations import LayerShape, activation_bytes, activation_terms, saved_by_term
from lib.costs.context import (
    attention_bytes,
    attention_flops,
    attention_seconds,
    context_memory,
    cut_imbalance,
    pairs_by_hop,
    tokens_to_hide,
)
from lib.costs.experts import DEEPSEEK_V3, MIXTRAL_8X7B, ExpertModel, ExpertShape, least_inner, rows_to_keep_busy
from lib.costs.gpt import gpt_parameters, gpt_synchronizations
from lib.costs.grid import axis_links, axis_seconds, axis_traffic, dry_step
from lib.costs.llama import kv_cache_bytes, llama_parameters, llama_synchronizations, simulate_step
from lib.costs.machine import Machine
from lib.costs.measure import Measured, measure
from lib.costs.pipeline import Bubble, bubble, pipeline_bytes, split_flops
from lib.costs.plans_that_fit import NothingFits, Proposal, propose
from lib.costs.scaling import amdahl, gustafson, strong_efficiency, weak_efficiency
from lib.costs.shapes import ModelShape
from lib.costs.step_plan import StepPlan
from lib.costs.tensor import data_parallel_costs, tensor_parallel_costs
from lib.costs.time import step_seconds
from lib.costs.zero import ModelState, model_state, zero_bytes, zero_volume
from lib.devices.bandwidth import algorithm_bandwidth, bus_bandwidth
from lib.devices.cluster import Cluster
from lib.devices.errors import DeadlockError, MismatchError
from lib.devices.group import Group
from lib.devices.handle import Handle
from lib.devices.hardware import Hardware, Link
from lib.devices.mesh import Mesh
from lib.devices.meters import Count, Meters
from lib.devices.streams import different_random, same_random
from lib.devices.trace import Event, Trace
from lib.guest.program import guest, script
from lib.parallel.attention.attention import ParallelSelfAttention
from lib.parallel.attention.cache import KVCache
from lib.parallel.attention.heads import FusedHeads, ParallelQKV
from lib.parallel.attention.kernels import attend, fused_attend
from lib.parallel.context.attention import ContextAttention
from lib.parallel.context.blocks import Block, blocks_between
from lib.parallel.context.cut import CutTokens, token_places
from lib.parallel.context.gathered import GatheredAttention
from lib.parallel.context.gpt import ContextGPT, sum_context_gradients
from lib.parallel.context.ring import RingAttention
from lib.parallel.context.softmax import attend_blocks, attend_part, attend_part_backward, merge_parts
from lib.parallel.context.tiles import TiledBlock, TiledContextGPT
from lib.parallel.context.ulysses import UlyssesAttention
from lib.parallel.data.average import (
    average_gradients,
    averaging,
    broadcast_parameters,
    check_same_parameters,
    shard_batch,
)
from lib.parallel.data.clip import clip_gradients, gradient_norm
from lib.parallel.data.parameter_server import plan_updates, train_asynchronously
from lib.parallel.experts.balance import balance_loss, imbalance, update_bias, z_loss
from lib.parallel.experts.capacity import capacity_for, keep_first
from lib.parallel.experts.gradients import gradient_norm_on, sum_gradients
from lib.parallel.experts.grid import ExpertGrid
from lib.parallel.experts.grouped import GroupedExperts, PaddedExperts, padded_share
from lib.parallel.experts.layer import MixtureOfExperts
from lib.parallel.experts.model import ExpertGPT, ExpertGPTConfig, expert_state
from lib.parallel.experts.nodes import NodeFirstExperts
from lib.parallel.experts.overlap import OverlappedExperts
from lib.parallel.experts.router import ExpertChoiceRouter, Router, RoutingRule, route
from lib.parallel.gpt.block import ParallelBlock
from lib.parallel.gpt.config import SIZES, GPTConfig
from lib.parallel.gpt.generate import generate
from lib.parallel.gpt.model import GPT
from lib.parallel.gpt.overlap import OverlappedBlock, OverlappedGPT
from lib.parallel.gpt.weights import from_gpt2, read_gpt2, write_gpt2
from lib.parallel.grid.config import ParallelConfig, valid_configs
from lib.parallel.grid.hybrid import HybridSharded
from lib.parallel.grid.owners import owners
from lib.parallel.grid.ranks import GridGroups, RankGrid
from lib.parallel.grid.trainer import GridTrainer
from lib.parallel.llama.config import LLAMAS, LlamaConfig
from lib.parallel.llama.layer import GatedMLP, LlamaAttention, LlamaBlock
from lib.parallel.llama.model import Llama
from lib.parallel.llama.rotary import LinearScaling, Llama3Scaling, rotate, turn_of
from lib.parallel.llama.rows import HubFolder
from lib.parallel.llama.sequence import SequenceLlama, SequenceLlamaBlock
from lib.parallel.llama.settings import llama_config
from lib.parallel.llama.weights import from_llama, load_llama, read_llama, write_llama
from lib.parallel.pipeline.check import check_schedule
from lib.parallel.pipeline.clock import Slot, Times, timeline
from lib.parallel.pipeline.halves import Later
from lib.parallel.pipeline.held import held, in_flight
from lib.parallel.pipeline.messages import with_messages
from lib.parallel.pipeline.schedules import (
    breadth_first,
    gpipe,
    interleaved,
    naive,
    one_f_one_b,
    split_backward,
    zb_h1,
    zb_h2,
)
from lib.parallel.pipeline.search import search_schedule
from lib.parallel.pipeline.shapes import check_shapes
from lib.parallel.pipeline.stages import cut_gpt, cut_layers, reduce_tied
from lib.parallel.pipeline.steps import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Forward,
    Recv,
    Schedule,
    Send,
    Step,
)
from lib.parallel.pipeline.v_shaped import dual_pipe_v, zb_v
from lib.parallel.pipeline.worker import run_pipeline
from lib.parallel.sequence.layers import SequenceLayerNorm, SequenceRMSNorm, gather_linear
from lib.parallel.sequence.model import (
    SequenceBlock,
    SequenceColumnLinear,
    SequenceEmbedding,
    SequenceGPT,
    SequenceMLP,
    SequenceQKV,
    SequenceRowLinear,
    SequenceSelfAttention,
)
from lib.parallel.sharding.conjugates import (
    all_gather,
    all_to_all,
    copy_to,
    gather_from,
    reduce_from,
    reduce_scatter,
    scatter_to,
)
from lib.parallel.sharding.dense import dense_state, load_dense
from lib.parallel.sharding.equal import Comparison, equal_to_one_device
from lib.parallel.sharding.linear import ColumnParallelLinear, RowParallelLinear
from lib.parallel.sharding.placement import Partial, Placement, Replicate, Shard, ShardBlocks
from lib.parallel.sharding.shards import shard, shard_sizes, unshard
from lib.parallel.tensor.dropout import ParallelDropout
from lib.parallel.tensor.mlp import ParallelMLP
from lib.parallel.tensor.overlap import OverlappedColumnLinear, OverlappedMLP, overlapped_linear
from lib.parallel.tensor.vocabulary import (
    PaddedShard,
    VocabParallelEmbedding,
    mean_loss,
    padded_vocabulary,
    vocab_parallel_cross_entropy,
)
from lib.parallel.typed.kinds import CONSTANT, ENTERED, SUMMAND, WHOLE, Kind, Operand, PlacementError
from lib.parallel.typed.listing import typed_listing
from lib.parallel.typed.mode import Typed
from lib.parallel.typed.moves import MOVES, Move
from lib.parallel.zero.fully_sharded import FullySharded, whole_parameters
from lib.parallel.zero.master import MasterWeights
from lib.parallel.zero.optimizer import ShardedOptimizer
from lib.parallel.zero.piece import whole_shape
from lib.parallel.zero.state import load_optimizer_state
from lib.parallel.zero.wrapped import ShardedGradScaler
from lib.real.processes import Processes
from lib.real.stopwatch import time_run
from lib.real.torchrun import launch

__all__ = [
    "Backward",
    "BackwardInput",
    "BackwardWeight",
    "Block",
    "Bubble",
    "CONSTANT",
    "Cluster",
    "ColumnParallelLinear",
    "Comparison",
    "ContextAttention",
    "ContextGPT",
    "Count",
    "CutTokens",
    "DEEPSEEK_V3",
    "DeadlockError",
    "ENTERED",
    "Event",
    "ExpertChoiceRouter",
    "ExpertGPT",
    "ExpertGPTConfig",
    "ExpertGrid",
    "ExpertModel",
    "ExpertShape",
    "Forward",
    "FullySharded",
    "FusedHeads",
    "GPT",
    "GPTConfig",
    "GatedMLP",
    "GatheredAttention",
    "GridGroups",
    "GridTrainer",
    "Group",
    "GroupedExperts",
    "Handle",
    "Hardware",
    "HubFolder",
    "HybridSharded",
    "KVCache",
    "Kind",
    "LLAMAS",
    "Later",
    "LayerShape",
    "LinearScaling",
    "Link",
    "Llama",
    "Llama3Scaling",
    "LlamaAttention",
    "LlamaBlock",
    "LlamaConfig",
    "MIXTRAL_8X7B",
    "MOVES",
    "Machine",
    "MasterWeights",
    "Measured",
    "Mesh",
    "Meters",
    "MismatchError",
    "MixtureOfExperts",
    "ModelShape",
    "ModelState",
    "Move",
    "NodeFirstExperts",
    "NothingFits",
    "Operand",
    "OverlappedBlock",
    "OverlappedColumnLinear",
    "OverlappedExperts",
    "OverlappedGPT",
    "OverlappedMLP",
    "PaddedExperts",
    "PaddedShard",
    "ParallelBlock",
    "ParallelConfig",
    "ParallelDropout",
    "ParallelMLP",
    "ParallelQKV",
    "ParallelSelfAttention",
    "Partial",
    "Placement",
    "PlacementError",
    "Processes",
    "Proposal",
    "RankGrid",
    "Recv",
    "Replicate",
    "RingAttention",
    "Router",
    "RoutingRule",
    "RowParallelLinear",
    "SIZES",
    "SUMMAND",
    "Schedule",
    "Send",
    "SequenceBlock",
    "SequenceColumnLinear",
    "SequenceEmbedding",
    "SequenceGPT",
    "SequenceLayerNorm",
    "SequenceLlama",
    "SequenceLlamaBlock",
    "SequenceMLP",
    "SequenceQKV",
    "SequenceRMSNorm",
    "SequenceRowLinear",
    "SequenceSelfAttention",
    "Shard",
    "ShardBlocks",
    "ShardedGradScaler",
    "ShardedOptimizer",
    "Slot",
    "Step",
    "StepPlan",
    "TiledBlock",
    "TiledContextGPT",
    "Times",
    "Trace",
    "Typed",
    "UlyssesAttention",
    "VocabParallelEmbedding",
    "WHOLE",
    "activation_bytes",
    "activation_terms",
    "algorithm_bandwidth",
    "all_gather",
    "all_to_all",
    "amdahl",
    "attend",
    "attend_blocks",
    "attend_part",
    "attend_part_backward",
    "attention_bytes",
    "attention_flops",
    "attention_seconds",
    "average_gradients",
    "averaging",
    "axis_links",
    "axis_seconds",
    "axis_traffic",
    "balance_loss",
    "blocks_between",
    "breadth_first",
    "broadcast_parameters",
    "bubble",
    "bus_bandwidth",
    "capacity_for",
    "check_same_parameters",
    "check_schedule",
    "check_shapes",
    "clip_gradients",
    "context_memory",
    "copy_to",
    "cut_gpt",
    "cut_imbalance",
    "cut_layers",
    "data_parallel_costs",
    "dense_state",
    "different_random",
    "dry_step",
    "dual_pipe_v",
    "equal_to_one_device",
    "expert_state",
    "from_gpt2",
    "from_llama",
    "fused_attend",
    "gather_from",
    "gather_linear",
    "generate",
    "gpipe",
    "gpt_parameters",
    "gpt_synchronizations",
    "gradient_norm",
    "gradient_norm_on",
    "guest",
    "gustafson",
    "held",
    "imbalance",
    "in_flight",
    "interleaved",
    "keep_first",
    "kv_cache_bytes",
    "launch",
    "least_inner",
    "llama_config",
    "llama_parameters",
    "llama_synchronizations",
    "load_dense",
    "load_llama",
    "load_optimizer_state",
    "mean_loss",
    "measure",
    "merge_parts",
    "model_state",
    "naive",
    "one_f_one_b",
    "overlapped_linear",
    "owners",
    "padded_share",
    "padded_vocabulary",
    "pairs_by_hop",
    "pipeline_bytes",
    "plan_updates",
    "propose",
    "read_gpt2",
    "read_llama",
    "reduce_from",
    "reduce_scatter",
    "reduce_tied",
    "rotate",
    "route",
    "rows_to_keep_busy",
    "run_pipeline",
    "same_random",
    "saved_by_term",
    "scatter_to",
    "script",
    "search_schedule",
    "shard",
    "shard_batch",
    "shard_sizes",
    "simulate_step",
    "split_backward",
    "split_flops",
    "step_seconds",
    "strong_efficiency",
    "sum_context_gradients",
    "sum_gradients",
    "tensor_parallel_costs",
    "time_run",
    "timeline",
    "token_places",
    "tokens_to_hide",
    "train_asynchronously",
    "turn_of",
    "typed_listing",
    "unshard",
    "update_bias",
    "valid_configs",
    "vocab_parallel_cross_entropy",
    "weak_efficiency",
    "whole_parameters",
    "whole_shape",
    "with_messages",
    "write_gpt2",
    "write_llama",
    "z_loss",
    "zb_h1",
    "zb_h2",
    "zb_v",
    "zero_bytes",
    "zero_volume",
]
