"""The memory formula for a Llama: what its layer keeps, to the byte, and the peak of a real step."""

from dataclasses import replace

import pytest
import torch
from parallel.small_model import one_thread  # noqa: F401

from lib import LlamaConfig, attend, fused_attend
from lib.costs.llama import llama_shape
from lib.costs.memory import TrainingPlan, layer_activations, peak
from lib.costs.saved_tensors import saved_activations
from lib.devices import Cluster
from lib.parallel.llama.layer import LlamaBlock
from lib.parallel.llama.model import Llama
from lib.parallel.llama.rotary import turn_of
from lib.parallel.llama.sequence import SequenceLlama, SequenceLlamaBlock

CONFIG = LlamaConfig(layers=1, hidden=64, heads=8, kv_heads=4, inner=160, vocabulary=64)
BATCH, LENGTH = 2, 32
PRECISION = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def kept(config, devices, cut, fused, dtype, device):
    def program(group):
        with torch.device(device):
            make = SequenceLlamaBlock if cut else LlamaBlock
            block = make(config, group, attend=fused_attend if fused else attend).to(dtype)
            length = LENGTH // devices if cut else LENGTH
            x = torch.randn(BATCH, length, config.hidden, dtype=dtype, requires_grad=True)
            turn = tuple(part.to(dtype) for part in turn_of(torch.arange(LENGTH), config.head_size))
            blocks = saved_activations(block, x, turn)
        angles = {part.shape for part in turn}  # one for all layers
        return sum(block.size for block in blocks if block.shape not in angles)

    return Cluster(devices).run(program)[0]


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("fused", [False, True], ids=["written out", "fused"])
@pytest.mark.parametrize("kv_heads", [8, 4, 1])
@pytest.mark.parametrize(("devices", "cut", "device"), [(1, False, "cpu"), (2, False, "meta"), (2, True, "meta")])
def test_what_a_layer_keeps_to_the_byte(devices, cut, device, kv_heads, fused, dtype):
    config = replace(CONFIG, kv_heads=kv_heads)
    plan = TrainingPlan(
        LENGTH,
        BATCH,
        tensor=devices,
        sequence_parallel=cut,
        fused_attention=fused,
        cpu=True,
        precision=PRECISION[dtype],
    )
    told = sum(layer_activations(llama_shape(config), plan).values())
    if kv_heads < devices:  # the formula leaves out a copy that this layer makes: its fused weight, to share gradients
        told += (config.heads // devices + 2) * config.head_size * config.hidden * dtype.itemsize
    assert kept(config, devices, cut, fused, dtype, device) == told


def test_norms_of_heads_keep_their_part():
    config = replace(CONFIG, qk_norm=True)
    plan = TrainingPlan(LENGTH, BATCH, cpu=True, precision="bfloat16")
    told = sum(layer_activations(llama_shape(config), plan).values())
    assert kept(config, 1, False, True, torch.bfloat16, "cpu") == told
    assert told > sum(layer_activations(llama_shape(CONFIG), plan).values())


def test_kernels_of_a_gpu_keep_less():
    shape = llama_shape(CONFIG)
    gpu, cpu = (sum(layer_activations(shape, TrainingPlan(128, cpu=cpu)).values()) for cpu in (False, True))
    whole, output, statistics = 128 * 64 * 2, 128 * 64 * 2, 128 * 4
    assert cpu - gpu == 2 * 3 * whole + output  # of each norm 8 bytes in the place of 2
    assert gpu > 2 * (whole + statistics)


# layers, hidden, heads, kv_heads, inner, vocabulary, tokens, texts
SHAPES = [
    (4, 128, 8, 2, 352, 1024, 128, 4),
    (6, 256, 4, 4, 688, 256, 32, 1),
    (3, 96, 8, 4, 256, 256, 128, 8),
    (2, 128, 4, 1, 344, 5120, 16, 2),
]


def held(config, plan):
    """The most that device 0 holds in the second step of a run."""

    def train(group):
        make = SequenceLlama if plan.sequence_parallel else Llama
        model = make(config, group, plan.recompute, fused_attend if plan.fused_attention else attend)
        optimizer = torch.optim.AdamW(model.parameters())
        tokens = torch.zeros(plan.micro_batch, plan.sequence, dtype=torch.long)
        for _ in range(2):
            optimizer.zero_grad()
            model(tokens, tokens).backward()
            optimizer.step()

    cluster = Cluster(plan.tensor, hardware="H100")
    with torch.device("meta"):
        cluster.run(train)
    return cluster.trace.peak(0)


@pytest.mark.parametrize("options", [{}, {"fused_attention": False}, {"recompute": "full"}, {"tensor": 2}], ids=str)
def test_the_peak_of_a_step(options):
    for layers, hidden, heads, kv_heads, inner, vocabulary, tokens, texts in SHAPES[:: 2 if options else 1]:
        config = LlamaConfig(
            layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, inner=inner, vocabulary=vocabulary
        )
        plan = TrainingPlan(tokens, texts, cpu=True, precision="float32", **options)
        assert peak(llama_shape(config), plan).total == pytest.approx(held(config, plan), rel=0.02), config
