"""Memory of a training step, byte by byte: when a device holds most, and what that is.

Parameters, gradients and the optimizer's numbers depend on the model alone. What the forward keeps for the backward
depends on batch and sequence, and so do the logits. No sum of all of it is ever held: gradients come while activations
go. So there are a few moments that can be the peak, and the largest of them is. GB are 1e9 bytes, as on data sheets.

What it is made of: `lib.costs.memory_terms`. How the model is trained: `lib.costs.training_plan`.
"""

from dataclasses import dataclass

from lib.costs.memory_terms import (
    attention_parameters,
    head_parameters,
    layer_activations,
    layer_parameters,
    norm_activations,
    optimizer_bytes,
    stage_layers,
    stage_parameters,
)
from lib.costs.shapes import ModelShape
from lib.costs.training_plan import PRECISIONS, TrainingPlan


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
    head = head_parameters(shape, plan) if last_stage else 0.0
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
    to_come = attention_parameters(shape, plan) * precision.gradient * share["G"]

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
