"""What one device holds of a model: its parameters, what the optimizer keeps of them, and what a layer's forward keeps.

Parameters and the optimizer's numbers depend on the model alone. What the forward keeps for the backward depends on
batch and sequence too. When it is all there, and what else there is then: `lib.costs.memory`.

Rajbhandari et al. 2020, arXiv 1910.02054, section 3 (model states); Korthikanti et al. 2022, arXiv 2205.05198,
section 4 (activations).
"""

from lib.costs.shapes import ModelShape
from lib.costs.training_plan import PRECISIONS, TrainingPlan

BLOCK_OF_8_BIT = 2048  # numbers that share one float32 scale: Dettmers et al. 2022, arXiv 2110.02861


def layer_activations(shape: ModelShape, plan: TrainingPlan) -> dict[str, float]:
    """Bytes that one device keeps of one layer for the backward of one micro-batch, nothing recomputed.

    What tensor parallelism leaves whole ("norms", "inputs", "dropout") is cut along the sequence with
    `sequence_parallel`. A gated MLP keeps four tensors as wide as `inner`: the gate before and after its SiLU, the
    other half, and their product.
    """
    tokens, each = plan.micro_batch * plan.sequence, PRECISIONS[plan.precision].activation
    whole = tokens * shape.hidden / (plan.tensor if plan.sequence_parallel else 1)
    heads, kv_heads = shape.heads / plan.tensor, max(shape.kv_heads / plan.tensor, 1)  # fewer than devices: copies
    queries, keys = tokens * heads * shape.head_size, tokens * kv_heads * shape.head_size
    weights = heads * plan.micro_batch * plan.sequence**2  # the softmax of the scores
    scores = 4 * tokens * heads if plan.fused_attention else weights * each  # fused: one float32 per row
    if plan.dropout and not plan.fused_attention:
        scores += weights * (1 + each)  # the mask, and the weights that it has left
    # Where heads share keys and values, attention that is written out repeats these for all heads of queries.
    common = keys if plan.fused_attention or shape.heads == shape.kv_heads else queries
    norms = 2 * norm_activations(shape, plan, whole, whole / shape.hidden)
    if shape.qk_norm:
        norms += norm_activations(shape, plan, queries + keys, (queries + keys) / shape.head_size)
    wide = (4 if shape.gated else 2) * shape.active_experts
    return {
        "norms": norms,
        "inputs": 2 * whole * each,
        "queries, keys, values": (queries + 2 * common) * each,
        "scores": scores,
        "attention's output": queries * each * (2 if plan.cpu and plan.fused_attention else 1),
        "MLP": wide * tokens * shape.inner / plan.tensor * each,
        "dropout": 2 * whole if plan.dropout else 0,
    }


def norm_activations(shape: ModelShape, plan: TrainingPlan, numbers: float, vectors: float) -> float:
    """Bytes that a norm of so many `vectors`, `numbers` in all, keeps: its input, and in float32 what it found out
    about each vector: a LayerNorm mean and deviation, an RMSNorm one of them."""
    if shape.bias:
        return numbers * PRECISIONS[plan.precision].activation + 2 * 4 * vectors
    if plan.cpu:  # every step in float32: also the vectors divided by their deviation
        return 2 * 4 * numbers + 4 * vectors
    return numbers * PRECISIONS[plan.precision].activation + 4 * vectors


def stage_layers(shape: ModelShape, plan: TrainingPlan, stage: int) -> int:
    """Layers on pipeline stage `stage`: as even as can be, the first stages have one more."""
    return shape.layers // plan.pipeline + (stage < shape.layers % plan.pipeline)


def layer_parameters(shape: ModelShape, plan: TrainingPlan) -> float:
    """Parameters that one device holds of one layer. Norms, and biases added after a sum, are whole."""
    parts, h = shape.parameters_by_part(), shape.hidden
    norms = 2 * h * (1 + shape.bias) + 2 * shape.head_size * shape.qk_norm
    biases = 2 * h * shape.bias
    copies = max(plan.tensor / shape.kv_heads, 1) - 1  # of keys and values, where devices are more than their heads
    copied = copies * 2 * shape.kv_heads * shape.head_size * (h + (shape.bias or shape.qkv_bias))
    cut = (parts["attention"] + parts["MLP"]) / shape.layers - 2 * shape.head_size * shape.qk_norm - biases + copied
    return cut / plan.tensor + norms + biases


def stage_parameters(shape: ModelShape, plan: TrainingPlan, stage: int) -> float:
    """Parameters that one device of pipeline stage `stage` holds."""
    parts = shape.parameters_by_part()
    held = stage_layers(shape, plan, stage) * layer_parameters(shape, plan)
    if stage == 0:
        held += parts["embedding"] / plan.tensor + parts["positions"]
    if stage == plan.pipeline - 1:
        shared = parts["embedding"] / plan.tensor if shape.tied and plan.pipeline == 1 else 0
        held += head_parameters(shape, plan) - shared  # a tied head is a copy only where the stages are several
    return held


def head_parameters(shape: ModelShape, plan: TrainingPlan) -> float:
    """The last norm and the head, whose gradients come first."""
    return shape.hidden * (1 + shape.bias) + shape.vocabulary * shape.hidden / plan.tensor


def attention_parameters(shape: ModelShape, plan: TrainingPlan) -> float:
    """The first norm, and queries, keys and values: their gradients come last in a layer."""
    kv_heads = max(shape.kv_heads, plan.tensor)
    columns = (shape.heads + 2 * kv_heads) * shape.head_size
    return shape.hidden * (1 + shape.bias) + columns * (shape.hidden + (shape.bias or shape.qkv_bias)) / plan.tensor


def optimizer_bytes(shape: ModelShape, plan: TrainingPlan, parameters: float) -> float:
    """Bytes of what the optimizer keeps beside `parameters` of them and their master copies."""
    each = PRECISIONS[plan.precision].optimizer
    if plan.optimizer == "adafactor":  # a mean for each row and each column of a matrix, in the place of a number each
        rows_and_columns = 1 / shape.hidden + 1 / max(shape.inner, shape.hidden)
        return each * parameters * rows_and_columns
    if plan.optimizer == "adam-8bit":
        return parameters * 2 * (1 + 4 / BLOCK_OF_8_BIT)
    return parameters * each * {"sgd": 0, "momentum": 1, "adam": 2}[plan.optimizer]
