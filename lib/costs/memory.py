"""Memory of a training step, byte by byte: what each device holds of a model, and when it holds most.

Parameters, gradients and the optimizer's numbers depend on the model alone. What the forward keeps for the backward
depends on batch and sequence, and so do the logits. No sum of all of it is ever held: gradients come while activations
go. So there are a few moments that can be the peak, and the largest of them is. GB are 1e9 bytes, as on data sheets.

Rajbhandari et al. 2020, arXiv 1910.02054, section 3 (model states); Korthikanti et al. 2022, arXiv 2205.05198,
section 4 (activations).
"""

from dataclasses import dataclass
from typing import Literal, get_args

from lib.costs.shapes import ModelShape

Recomputed = Literal["selective", "full"]
Optimizer = Literal["sgd", "momentum", "adam", "adam-8bit", "adafactor"]


@dataclass(frozen=True)
class Precision:
    """Bytes of one number: of a `parameter`, of its `gradient`, of its float32 `master` copy (0: there is none), of
    what the `optimizer` keeps of it, and of an `activation`."""

    parameter: int
    gradient: int
    master: int
    optimizer: int
    activation: int


PRECISIONS = {
    "float32": Precision(4, 4, 0, 4, 4),
    "bfloat16": Precision(2, 2, 0, 2, 2),  # all of it, without master weights: small steps are rounded away
    "mixed": Precision(2, 2, 4, 4, 2),  # 16 bytes per parameter with Adam
    "mixed, float32 gradients": Precision(2, 4, 4, 4, 2),  # 18, as Megatron-LM with bfloat16
    "mixed, gradients twice": Precision(2, 2 + 4, 4, 4, 2),  # 20, as Megatron-LM with float16
}
BLOCK_OF_8_BIT = 2048  # numbers that share one float32 scale: Dettmers et al. 2022, arXiv 2110.02861


@dataclass(frozen=True)
class TrainingPlan:
    """How a model is trained: the grid of `data` x `tensor` x `pipeline` devices, and what is done to save memory.

    A replica takes `micro_batches` micro-batches of `micro_batch` texts of `sequence` tokens for each step. `zero` is
    the stage of ZeRO over the replicas. `recompute`: "selective" computes the scores anew, "full" whole layers, from
    the input of every `every`-th. `fused_attention` never stores scores (FlashAttention). `cpu`: the kernels are
    those of PyTorch on a CPU (and on `meta`), which keep more: of an RMSNorm, whose steps they write out in float32,
    and of fused attention, whose output they copy. `chunks` cuts the tokens for the loss, so that only one chunk's
    logits exist at a time.

    Raises ValueError for what cannot be, naming it.
    """

    sequence: int
    micro_batch: int = 1
    micro_batches: int = 1
    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    zero: int = 0
    sequence_parallel: bool = False
    recompute: Recomputed | None = None
    every: int = 1
    fused_attention: bool = True
    cpu: bool = False
    dropout: bool = False
    chunks: int = 1
    precision: str = "mixed"
    optimizer: Optimizer = "adam"

    def __post_init__(self) -> None:
        for name in ("sequence", "micro_batch", "micro_batches", "data", "tensor", "pipeline", "every", "chunks"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"TrainingPlan: {name}={size!r} must be an integer of at least 1")
        choices = {
            "zero": (0, 1, 2, 3),
            "recompute": (None, *get_args(Recomputed)),
            "precision": tuple(PRECISIONS),
            "optimizer": get_args(Optimizer),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"TrainingPlan: {name}={getattr(self, name)!r} must be one of {allowed}")

    @property
    def devices(self) -> int:
        """All of them."""
        return self.data * self.tensor * self.pipeline

    @property
    def global_batch(self) -> int:
        """Texts per optimizer step, over all replicas."""
        return self.micro_batch * self.micro_batches * self.data

    def check(self, shape: ModelShape) -> None:
        """Raises ValueError when `shape` cannot be split so, naming the sizes."""
        for what, size in (("heads", shape.heads), ("inner", shape.inner)):
            if size % self.tensor:
                raise ValueError(f"tensor={self.tensor} devices cannot split {what}={size} evenly")
        if self.pipeline > shape.layers:
            raise ValueError(f"pipeline={self.pipeline} stages need as many layers at least; there are {shape.layers}")
        if self.sequence_parallel and self.sequence % self.tensor:
            raise ValueError(f"a sequence of {self.sequence} cannot be cut over tensor={self.tensor} devices evenly")
        if shape.learned_positions and self.sequence > shape.learned_positions:
            raise ValueError(f"sequence={self.sequence}: the model has {shape.learned_positions} positions")


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
        held += _head_parameters(shape, plan) - shared  # a tied head is a copy only where the stages are several
    return held


def _head_parameters(shape: ModelShape, plan: TrainingPlan) -> float:
    """The last norm and the head, whose gradients come first."""
    return shape.hidden * (1 + shape.bias) + shape.vocabulary * shape.hidden / plan.tensor


def _attention_parameters(shape: ModelShape, plan: TrainingPlan) -> float:
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


@dataclass(frozen=True)
class Moment:
    """What one device holds at one moment of a step, in bytes. `working` is what exists only then."""

    name: str
    parameters: float
    gradients: float
    optimizer: float  # with master weights
    activations: float
    logits: float
    working: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, use) for use in USES)


USES = ("parameters", "gradients", "optimizer", "activations", "logits", "working")


def moments(shape: ModelShape, plan: TrainingPlan, stage: int = 0) -> list[Moment]:
    """The moments that can be the peak of a step on pipeline stage `stage`, in their order.

    The step is one in the middle of a training: the optimizer has its state. Gradients are freed after each step.
    Left out: the allocator's rounding, buckets on their way, and what the device itself needs.
    """
    plan.check(shape)
    precision = PRECISIONS[plan.precision]
    tokens, each = plan.micro_batch * plan.sequence, precision.activation
    whole = tokens * shape.hidden * each / (plan.tensor if plan.sequence_parallel else 1)  # one (tokens, hidden)
    layers, last_stage = stage_layers(shape, plan, stage), stage == plan.pipeline - 1
    in_flight = min(plan.micro_batches, plan.pipeline - stage)  # of 1F1B; one stage finishes each before the next

    # Model states. ZeRO divides them by the replicas: the optimizer's from stage 1 on, gradients 2, parameters 3.
    held = stage_parameters(shape, plan, stage)
    share = {of: 1 / plan.data if plan.zero >= least else 1.0 for least, of in ((1, "O"), (2, "G"), (3, "P"))}
    head = _head_parameters(shape, plan) if last_stage else 0.0
    layer = layer_parameters(shape, plan)
    gathered = layer * precision.parameter * (plan.zero == 3) * (plan.data > 1)
    parameters = held * precision.parameter * share["P"]
    optimizer = (held * precision.master + optimizer_bytes(shape, plan, held)) * share["O"]
    gradients = held * precision.gradient * share["G"]
    before = gradients if plan.micro_batches > 1 else 0.0  # the sum so far, to which each new gradient is added

    # Activations. What a layer keeps, and what is there once more while its own backward runs.
    parts = layer_activations(shape, plan)
    everything, scores = sum(parts.values()), parts["scores"]
    keeps = {None: everything, "selective": everything - scores, "full": whole / plan.every}[plan.recompute]
    again = everything * plan.every - whole if plan.recompute == "full" else 0.0
    kept = in_flight * layers * keeps
    mask = tokens * shape.hidden * (plan.dropout and stage == 0)  # of the embedding's dropout
    kept += mask / (plan.tensor if plan.sequence_parallel else 1)
    vectors = whole / each / shape.hidden
    norm = norm_activations(shape, plan, whole / each, vectors)
    ends = norm + whole if last_stage else 0.0  # what the last norm keeps, and the input of the head
    logit = tokens / plan.chunks * shape.vocabulary / plan.tensor if last_stage else 0.0
    # At the loss's forward: the logits, their softmax in float32, and in half precision that once more, rounded.
    logits_kept, logits_working = logit * 2 * each, logit * 4 * (each < 4)

    # The backward of a layer: what goes before its attention begins, and what exists only while it runs.
    query = tokens * shape.heads / plan.tensor * shape.head_size * each
    key = (parts["queries, keys, values"] - query) / 2
    wide = tokens * shape.inner * shape.active_experts / plan.tensor * each
    # The MLP, its input and norm, the projection's input, the values.
    mlp_gone = parts["MLP"] + norm + whole + parts["attention's output"] + key
    # The gradient of its output, and its residual; a layer computed anew has no output.
    mlp_working = (2 if shape.gated else 1) * wide + (1 if plan.recompute == "full" else 2) * whole
    if plan.fused_attention:
        attention_working = 2 * query + 2 * key + 2 * whole
    else:
        weights = tokens * plan.sequence * shape.heads / plan.tensor * each
        attention_working = 2 * weights + 2 * whole - weights * plan.dropout  # what dropout left is used up by then
        if plan.recompute == "selective":
            attention_working += scores + query + 2 * key  # computed anew, from copies of queries, keys and values
    head_gradient = head * precision.gradient * share["G"]
    down = shape.inner * shape.hidden * shape.active_experts / plan.tensor * precision.gradient * share["G"]
    of_layer = layer * precision.gradient * share["G"]
    # The embedding's gradient is as large as itself. A tied one gets two, and their sum, before any is freed.
    tied = shape.tied and plan.pipeline == 1
    looked_up = shape.vocabulary * shape.hidden / plan.tensor * precision.gradient * share["G"] * (stage == 0)
    embedding_to_come = 0.0 if tied else looked_up
    to_come = _attention_parameters(shape, plan) * precision.gradient * share["G"]

    def moment(name: str, activations: float, grads: float = 0.0, logits: float = 0.0, working: float = 0.0) -> Moment:
        working += gathered * (name != "the optimizer's step")
        return Moment(name, parameters, max(grads, before), optimizer, activations, logits, working)

    found = []
    if last_stage:
        found.append(moment("the loss", kept + ends, logits=logits_kept, working=logits_working))
        # The gradient of the head's input; where the sequence is cut, that of all tokens, and the input gathered again.
        inputs = 2 * whole * plan.tensor if plan.sequence_parallel else whole
        found.append(moment("the head", kept + ends, head_gradient, logit * each, inputs + (before and head_gradient)))
    found += [
        moment("the last layer's MLP", kept + again, head_gradient + down, working=mlp_working + (before and down)),
        moment(
            "the last layer's attention",
            kept + again - mlp_gone * (plan.recompute != "full" or again > 0),
            head_gradient + of_layer - to_come,
            working=attention_working,
        ),
        moment(
            "the first layer's MLP",
            keeps + again,
            gradients - embedding_to_come - of_layer + down,
            working=mlp_working + (before and down),
        ),
        moment(
            "the first layer's attention",
            keeps + again - mlp_gone * (plan.recompute != "full" or again > 0),
            gradients - embedding_to_come - to_come,
            working=attention_working,
        ),
        moment("the embedding", 0.0, gradients - looked_up * (not before), working=looked_up * (3 if tied else 1)),
        moment("the optimizer's step", 0.0, gradients, working=_step_working(shape, plan, held * share["O"])),
    ]
    return found


def _step_working(shape: ModelShape, plan: TrainingPlan, held: float) -> float:
    """What the step of `held` parameters needs beside its state: two copies of the largest matrix, one matrix after
    the other; and where there are master weights, a copy of the gradients in their precision.

    So on the CPU. On a GPU PyTorch takes all matrices at once, which needs one copy of all.
    """
    precision = PRECISIONS[plan.precision]
    largest = max(shape.vocabulary * shape.hidden, shape.hidden * shape.inner) / plan.tensor
    copies = held * precision.master * (precision.gradient < precision.master)  # gradients, in the master's precision
    return copies + 2 * largest * precision.optimizer * (plan.optimizer in ("adam", "adam-8bit"))


def peak(shape: ModelShape, plan: TrainingPlan) -> Moment:
    """The moment at which the fullest stage of the pipeline holds most."""
    stages = {0, plan.pipeline - 1}
    return max((moment for stage in stages for moment in moments(shape, plan, stage)), key=lambda moment: moment.total)
