"""One Model, Many Devices: simulated devices, models that are split over them, and what it costs.

`lib.devices` says how devices run and talk, `lib.parallel` how a model is split (a room per idea), `lib.costs` what it
costs, `lib.real` how the same programs run as real processes, `lib.guest` runs the programs of others,
and `lib.examples` has programs that use all of it. Imports only go down, in this order. Readers find every name here:
`from lib import Cluster, shard`.
"""

from lib.command import interruptible_from_the_start
from lib.door import door
from lib.partners import partners_are_in

# The map of the library: room, file, and the names in it that readers use. A file is loaded when one is asked for.
ROOMS = {
    "lib.devices": {
        "bandwidth": "algorithm_bandwidth bus_bandwidth",
        "cluster": "Cluster",
        "errors": "DeadlockError MismatchError",
        "group": "Group",
        "handle": "Handle",
        "hardware": "Hardware Link",
        "mesh": "Mesh",
        "meters": "Count Meters",
        "pieces": "shard_sizes",
        "streams": "different_random same_random",
        "trace": "Event Trace",
    },
    "lib.parallel.sharding": {
        "conjugates": "all_gather all_to_all copy_to gather_from reduce_from reduce_scatter scatter_to",
        "dense": "dense_state load_dense",
        "equal": "Comparison equal_to_one_device",
        "linear": "ColumnParallelLinear RowParallelLinear",
        "placement": "Partial Placement Replicate Shard ShardBlocks",
        "shards": "shard unshard",
    },
    "lib.parallel.data": {
        "average": "average_gradients averaging broadcast_parameters check_same_parameters shard_batch",
        "clip": "clip_gradients gradient_norm",
        "parameter_server": "plan_updates train_asynchronously",
    },
    "lib.parallel.zero": {
        "fully_sharded": "FullySharded whole_parameters",
        "master": "MasterWeights",
        "optimizer": "ShardedOptimizer",
        "piece": "whole_shape",
        "state": "load_optimizer_state",
        "wrapped": "ShardedGradScaler",
    },
    "lib.parallel.tensor": {
        "dropout": "ParallelDropout",
        "mlp": "ParallelMLP",
        "overlap": "OverlappedColumnLinear OverlappedMLP overlapped_linear",
        "vocabulary": "PaddedShard VocabParallelEmbedding mean_loss padded_vocabulary vocab_parallel_cross_entropy",
    },
    "lib.parallel.attention": {
        "attention": "ParallelSelfAttention",
        "cache": "KVCache",
        "heads": "FusedHeads ParallelQKV",
        "kernels": "attend fused_attend",
    },
    "lib.parallel.sequence": {
        "layers": "SequenceLayerNorm SequenceRMSNorm gather_linear",
        "model": (
            "SequenceBlock SequenceColumnLinear SequenceEmbedding SequenceGPT SequenceMLP SequenceQKV "
            "SequenceRowLinear SequenceSelfAttention"
        ),
    },
    "lib.parallel.gpt": {
        "block": "ParallelBlock",
        "config": "GPTConfig SIZES",
        "generate": "generate",
        "model": "GPT",
        "overlap": "OverlappedBlock OverlappedGPT",
        "weights": "from_gpt2 read_gpt2 write_gpt2",
    },
    "lib.parallel.llama": {
        "config": "LLAMAS LlamaConfig",
        "layer": "GatedMLP LlamaAttention LlamaBlock",
        "model": "Llama",
        "rotary": "LinearScaling Llama3Scaling rotate turn_of",
        "rows": "HubFolder",
        "sequence": "SequenceLlama SequenceLlamaBlock",
        "settings": "llama_config",
        "weights": "from_llama load_llama read_llama write_llama",
    },
    "lib.parallel.context": {
        "attention": "ContextAttention",
        "blocks": "Block blocks_between",
        "cut": "CutTokens token_places",
        "gathered": "GatheredAttention",
        "gpt": "ContextGPT sum_context_gradients",
        "ring": "RingAttention",
        "softmax": "attend_blocks attend_part attend_part_backward merge_parts",
        "tiles": "TiledBlock TiledContextGPT",
        "ulysses": "UlyssesAttention",
    },
    "lib.parallel.pipeline": {
        "check": "check_schedule",
        "clock": "Slot Times timeline",
        "halves": "Later",
        "held": "held in_flight",
        "messages": "with_messages",
        "schedules": "breadth_first gpipe interleaved naive one_f_one_b split_backward zb_h1 zb_h2",
        "search": "search_schedule",
        "shapes": "check_shapes",
        "stages": "cut_gpt cut_layers reduce_tied",
        "steps": "Backward BackwardInput BackwardWeight Forward Recv Schedule Send Step",
        "v_shaped": "dual_pipe_v zb_v",
        "worker": "run_pipeline",
    },
    "lib.parallel.experts": {
        "balance": "balance_loss imbalance update_bias z_loss",
        "capacity": "capacity_for keep_first",
        "gradients": "gradient_norm_on sum_gradients",
        "grid": "ExpertGrid",
        "grouped": "GroupedExperts PaddedExperts padded_share",
        "layer": "MixtureOfExperts",
        "model": "ExpertGPT ExpertGPTConfig expert_state",
        "nodes": "NodeFirstExperts",
        "overlap": "OverlappedExperts",
        "router": "ExpertChoiceRouter Router RoutingRule route",
    },
    "lib.parallel.grid": {
        "config": "ParallelConfig valid_configs",
        "hybrid": "HybridSharded",
        "owners": "owners",
        "ranks": "GridGroups RankGrid",
        "trainer": "GridTrainer",
    },
    "lib.parallel.typed": {
        "kinds": "CONSTANT ENTERED Kind Operand PlacementError SUMMAND WHOLE",
        "listing": "typed_listing",
        "mode": "Typed",
        "moves": "MOVES Move",
    },
    "lib.costs": {
        "activations": "LayerShape activation_bytes activation_terms saved_by_term",
        "context": (
            "attention_bytes attention_flops attention_seconds context_memory cut_imbalance pairs_by_hop tokens_to_hide"
        ),
        "experts": "DEEPSEEK_V3 ExpertModel ExpertShape MIXTRAL_8X7B least_inner rows_to_keep_busy",
        "gpt": "gpt_parameters gpt_synchronizations",
        "grid": "axis_links axis_seconds axis_traffic dry_step",
        "llama": "kv_cache_bytes llama_parameters llama_synchronizations simulate_step",
        "machine": "Machine",
        "measure": "Measured measure",
        "pipeline": "Bubble bubble pipeline_bytes split_flops",
        "plans_that_fit": "NothingFits Proposal propose",
        "scaling": "amdahl gustafson strong_efficiency weak_efficiency",
        "shapes": "ModelShape",
        "step_plan": "StepPlan",
        "tensor": "data_parallel_costs tensor_parallel_costs",
        "time": "step_seconds",
        "zero": "ModelState model_state zero_bytes zero_volume",
    },
    "lib.real": {
        "processes": "Processes",
        "stopwatch": "time_run",
        "torchrun": "launch",
    },
    "lib.guest": {
        "program": "guest script",
    },
}
__all__, __getattr__, __dir__ = door(__name__, ROOMS)
partners_are_in("lib.parallel.sharding.conjugates")
interruptible_from_the_start()
