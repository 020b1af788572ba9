"""The memory formula against what the trace of a real step holds at its peak."""

import itertools

import pytest
import torch

from lib import GPT, GPTConfig, SequenceGPT
from lib.costs.activations import LayerShape, activation_bytes
from lib.costs.gpt import gpt_parameters
from lib.costs.memory import (
    PRECISIONS,
    USES,
    TrainingPlan,
    layer_activations,
    moments,
    optimizer_bytes,
    peak,
    stage_parameters,
)
from lib.costs.shapes import MODELS, ModelShape
from lib.devices import Cluster
from lib.parallel.zero.master import MasterWeights

# layers, hidden, heads, vocabulary, tokens, texts: the peak is at the loss, in attention, or in the optimizer's step.
SHAPES = [
    (2, 128, 4, 1024, 128, 4),
    (2, 64, 4, 256, 256, 2),
    (2, 256, 4, 256, 32, 1),
    (2, 128, 4, 5120, 16, 2),
    (3, 96, 8, 256, 64, 16),
]


def held(shape, plan):
    """The most that device 0 holds in the second step of a run, and the same use by use."""
    config = GPTConfig(*shape[:4], positions=shape[4], dropout=0.1 if plan.dropout else 0.0)

    def train(group):
        model = (SequenceGPT if plan.sequence_parallel else GPT)(config, group, recompute=plan.recompute)
        if plan.precision == "mixed":
            model = model.bfloat16()
            optimizer = MasterWeights(model.parameters(), torch.optim.AdamW)
        else:
            model = model.bfloat16() if plan.precision == "bfloat16" else model
            optimizer = torch.optim.AdamW(model.parameters())
        tokens = torch.zeros(plan.micro_batch, plan.sequence, dtype=torch.long)
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(plan.micro_batches):
                model(tokens, tokens).backward()
            optimizer.step()

    cluster = Cluster(plan.tensor, hardware="H100")
    with torch.device("meta"):
        cluster.run(train)
    return cluster.trace.peak(0)


def plan_for(shape, **options):
    return TrainingPlan(shape[4], shape[5], **{"precision": "float32", "fused_attention": False, **options})


def gpt(shape):
    return ModelShape.gpt(*shape[:4], positions=shape[4])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recompute": "selective"},
        {"recompute": "full"},
        {"tensor": 2},
        {"tensor": 4, "sequence_parallel": True},
        {"micro_batches": 3},
        {"dropout": True},
        {"precision": "mixed"},
        {"precision": "bfloat16", "micro_batches": 2},
    ],
    ids=str,
)
def test_the_peak_of_a_step_is_predicted(options):
    """At one shape for each moment that is the peak: a second shape would ask for the same sum."""
    shapes = {peak(gpt(shape), plan_for(shape, **options)).name: shape for shape in reversed(SHAPES)}
    assert len(shapes) >= 3
    every = 2 if options else 1
    for name, shape in list(shapes.items())[::every]:
        plan = plan_for(shape, **options)
        assert peak(gpt(shape), plan).total == pytest.approx(held(shape, plan), rel=0.02), (name, shape)


def test_each_kind_of_moment_is_the_peak_somewhere():
    options = [{}, {"recompute": "full"}, {"micro_batches": 3}, {"tensor": 4, "sequence_parallel": True}]
    found = {peak(gpt(shape), plan_for(shape, **some)).name for shape in SHAPES for some in options}
    assert found == {
        "the loss",
        "the head",
        "the embedding",
        "the last layer's MLP",
        "the last layer's attention",
        "the first layer's MLP",
        "the first layer's attention",
        "the optimizer's step",
    }


def test_a_layer_keeps_what_the_paper_says():
    layer = ModelShape.gpt(1, 64, 8, positions=32)
    for tensor, cut in itertools.product((1, 2, 4), (False, True)):
        plan = TrainingPlan(
            32, 2, tensor=tensor, sequence_parallel=cut, fused_attention=False, dropout=True, precision="mixed"
        )
        kept = layer_activations(layer, plan)
        statistics = 2 * 2 * 4 * 2 * 32 / (tensor if cut else 1)  # of two LayerNorms, which the paper leaves out
        assert sum(kept.values()) - statistics == activation_bytes(LayerShape(32, 2, 64, 8), tensor, cut)


def test_parameters_of_a_device_are_those_of_the_model():
    for tensor in (1, 2, 4):
        shape = ModelShape.gpt(3, 64, 8, vocabulary=1024 * tensor, positions=32)
        held_by_one = stage_parameters(shape, TrainingPlan(32, tensor=tensor), 0)
        assert held_by_one == gpt_parameters(GPTConfig(3, 64, 8, 1024 * tensor, 32), tensor)
    for name in ("llama-3-8b", "qwen2.5-7b", "mixtral-8x7b", "gpt2"):
        shape = MODELS[name]
        for stages in (1, 2, 3):
            plan = TrainingPlan(128, pipeline=stages)
            copy = shape.vocabulary * shape.hidden * (shape.tied and stages > 1)  # of the tied head
            whole = sum(stage_parameters(shape, plan, stage) for stage in range(stages))
            assert whole == shape.parameters + copy


@pytest.mark.parametrize(
    ("precision", "each"),
    [("float32", 16), ("bfloat16", 8), ("mixed", 16), ("mixed, float32 gradients", 18), ("mixed, gradients twice", 20)],
)
def test_bytes_per_parameter_with_adam(precision, each):
    kinds = PRECISIONS[precision]
    plan = TrainingPlan(128, precision=precision)
    state = optimizer_bytes(MODELS["gpt2"], plan, 1.0)
    assert kinds.parameter + kinds.gradient + kinds.master + state == each


@pytest.mark.parametrize(
    ("optimizer", "least", "most"),
    [("sgd", 0, 0), ("momentum", 4, 4), ("adam", 8, 8), ("adam-8bit", 2, 2.01), ("adafactor", 0.001, 0.02)],
)
def test_what_an_optimizer_keeps_of_a_parameter(optimizer, least, most):
    assert least <= optimizer_bytes(MODELS["gpt2"], TrainingPlan(128, optimizer=optimizer), 1.0) <= most


def test_zero_divides_what_its_stage_says_and_no_activation():
    shape = MODELS["llama-3-8b"]
    stages = [
        {moment.name: moment for moment in moments(shape, TrainingPlan(2048, data=8, zero=zero))} for zero in range(4)
    ]
    step = [stage["the optimizer's step"] for stage in stages]
    assert [m.optimizer / step[0].optimizer for m in step] == [1, 1 / 8, 1 / 8, 1 / 8]
    assert [m.gradients / step[0].gradients for m in step] == [1, 1, 1 / 8, 1 / 8]
    assert [m.parameters / step[0].parameters for m in step] == [1, 1, 1, 1 / 8]
    assert len({stage["the loss"].activations for stage in stages}) == 1


def test_the_first_stage_of_1f1b_keeps_as_much_as_no_pipeline():
    shape = MODELS["llama-3-8b"]
    alone = moments(shape, TrainingPlan(4096, pipeline=1, micro_batches=8))[0].activations
    first = moments(shape, TrainingPlan(4096, pipeline=8, micro_batches=8), 0)[0].activations
    last = moments(shape, TrainingPlan(4096, pipeline=8, micro_batches=8), 7)[0].activations
    assert first == pytest.approx(alone, rel=0.01)  # 8 micro-batches of an eighth of the layers
    assert last < first / 7


def test_chunks_of_the_loss_and_fused_attention_take_their_term_away():
    shape = MODELS["llama-3-8b"]
    loss = moments(shape, TrainingPlan(8192))[0]
    chunked = moments(shape, TrainingPlan(8192, chunks=16))[0]
    assert chunked.logits == loss.logits / 16
    assert chunked.activations == loss.activations
    written = layer_activations(shape, TrainingPlan(8192, fused_attention=False))["scores"]
    assert written == 2 * shape.heads * 8192**2
    assert layer_activations(shape, TrainingPlan(8192))["scores"] == 4 * shape.heads * 8192


def test_every_use_counts_once():
    for moment in moments(MODELS["gpt2"], TrainingPlan(1024, 2, 3)):
        assert moment.total == sum(getattr(moment, use) for use in USES)
        assert all(getattr(moment, use) >= 0 for use in USES)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sequence": 0}, "sequence=0 must be an integer of at least 1"),
        ({"data": 1.5}, "data=1.5"),
        ({"zero": 4}, "zero=4 must be one of"),
        ({"recompute": "some"}, "recompute='some'"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"optimizer": "lion"}, "optimizer='lion'"),
        ({"tensor": 5}, "tensor=5 devices cannot split heads=12 evenly"),
        ({"pipeline": 13}, "there are 12"),
        ({"sequence": 2048}, "the model has 1024 positions"),
        ({"sequence": 1023, "tensor": 4, "sequence_parallel": True}, "a sequence of 1023"),
    ],
)
def test_what_cannot_be_is_named(options, says):
    with pytest.raises(ValueError, match=".") as caught:
        moments(MODELS["gpt2"], TrainingPlan(**{"sequence": 1024, **options}))
    assert says in str(caught.value)


def test_heads_of_keys_and_values_that_fit_on_no_device_are_named():
    shape = ModelShape.llama(2, 96, 12, 6, 144, 50)
    assert TrainingPlan(8, tensor=3).check(shape) is None
    assert TrainingPlan(8, tensor=12).check(shape) is None
    with pytest.raises(ValueError, match="6 heads of keys and values cannot be laid out over 4 devices"):
        moments(shape, TrainingPlan(8, tensor=4))
