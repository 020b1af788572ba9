"""What a Llama costs on P devices: parameters, meetings and cache by formula, a step of any size on the clock.

Beside GPT-2: three matrices in the MLP, no biases, no positions, a head of its own; fewer keys and values to keep; and
of the meetings the same large ones.
"""

from dataclasses import dataclass, replace

import torch

from lib.costs.compute import step_flops
from lib.costs.gpt import Synchronization, loss_synchronization, tensor_parallel_synchronizations
from lib.costs.shapes import ModelShape
from lib.devices import Cluster, Group, Hardware
from lib.devices.counts import check_counts
from lib.parallel.attention.heads import check_heads, kv_copies
from lib.parallel.attention.kernels import fused_attend
from lib.parallel.gpt.block import Recompute
from lib.parallel.llama.config import LlamaConfig
from lib.parallel.llama.model import Llama
from lib.parallel.llama.sequence import SequenceLlama
from lib.parallel.tensor.vocabulary import padded_vocabulary

SAME_NAMES = (
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "inner",
    "vocabulary",
    "head_size",
    "tied",
    "qkv_bias",
    "qk_norm",
)


def llama_shape(config: LlamaConfig) -> ModelShape:
    """All that the costs of this model depend on."""
    return ModelShape(**{name: getattr(config, name) for name in SAME_NAMES})


def llama_parameters(config: LlamaConfig, devices: int = 1) -> int:
    """The parameters that each device holds: norms whole, a head of keys and values at least, of the rest its part.

    Raises ValueError when the devices cannot have whole heads.
    """
    check_heads(config.heads * config.head_size, config.heads, config.kv_heads, devices)
    h, d = config.hidden, config.head_size
    rows = (config.heads // devices + 2 * max(1, config.kv_heads // devices)) * d  # of the fused weight
    layer = rows * (h + config.qkv_bias) + h * config.heads * d // devices + 3 * h * config.inner // devices
    layer += 2 * h + 2 * d * config.qk_norm
    words = padded_vocabulary(config.vocabulary, devices) // devices * h
    return config.layers * layer + h + words * (1 if config.tied else 2)


def kv_cache_bytes(config: LlamaConfig, devices: int, batch: int, positions: int, itemsize: int = 2) -> int:
    """What each device keeps of `batch` texts of `positions` tokens. Beyond kv_heads devices it shrinks no more.

    Raises ValueError when the devices cannot have whole heads.
    """
    check_heads(config.heads * config.head_size, config.heads, config.kv_heads, devices)
    mine = max(1, config.kv_heads // devices)
    return 2 * config.layers * batch * positions * mine * config.head_size * itemsize


def llama_synchronizations(
    config: LlamaConfig, batch: int, sequence: int, devices: int, sequence_parallel: bool = False
) -> list[Synchronization]:
    """Every meeting of the devices in one forward and one backward pass of `Llama`, with its loss, nothing recomputed.

    The large ones are GPT-2's. Small ones are its own: the gradients of keys and values of which there are copies, and
    of the norms that every device uses for its own heads or tokens.
    """
    layers, hidden, tokens = config.layers, config.hidden, batch * sequence
    whole, loss = tokens * hidden, loss_synchronization(tokens)
    small = []
    if config.qk_norm:
        small.append(Synchronization("norms of heads", "backward", "all_reduce", 2 * layers, config.head_size))
    copies, common = kv_copies(config.kv_heads, devices), 2 * config.head_size
    if copies > 1:
        small.append(Synchronization("copied keys, values", "backward", "all_reduce", layers, common * hidden, copies))
        if config.qkv_bias:
            small.append(Synchronization("their bias", "backward", "all_reduce", layers, common, copies))
    if not sequence_parallel:
        return [*tensor_parallel_synchronizations(layers, hidden, tokens), *small]
    regions = 2 * layers + 1  # attention and MLP of every layer, and the head, which is not left again
    return [
        Synchronization("embedding", "forward", "reduce_scatter", 1, whole),
        Synchronization("regions: enter", "forward", "all_gather", regions, whole),
        Synchronization("layers: leave", "forward", "reduce_scatter", 2 * layers, whole),
        loss,
        Synchronization("regions: enter, gradient", "backward", "reduce_scatter", regions, whole),
        Synchronization("regions: input once more", "backward", "all_gather", regions, whole),
        Synchronization("layers: leave, gradient", "backward", "all_gather", 2 * layers, whole),
        Synchronization("norms: weight", "backward", "all_reduce", 2 * layers + 1, hidden),
        Synchronization("embedding, gradient", "backward", "all_gather", 1, whole),
        *small,
    ]


@dataclass(frozen=True)
class SimulatedStep:
    """Forward and backward of one text, on each device: seconds on the clock, parameters, bytes kept at most and sent.

    `mfu` is the share of the devices' peak that the model's own FLOPs are (what is computed anew does not count; of
    the scores only the half that the causal mask leaves).
    """

    seconds: float
    mfu: float
    parameters: int
    activations: float
    sent: float


def simulate_step(
    config: LlamaConfig,
    devices: int,
    sequence: int,
    hardware: Hardware,
    sequence_parallel: bool = True,
    recompute: Recompute | None = None,
    runs: tuple[int, int] | None = (1, 2),
) -> SimulatedStep:
    """One step of a model of any size, without its numbers: bfloat16 on `meta`, attention by the fused kernel.

    Layers are equal, so models of `runs` layers tell how long all of them take; with None all layers are run. What the
    clock leaves out: contention, and the time to start a kernel unless `hardware` has one.
    """
    check_counts("simulate_step", {"devices": devices, "sequence": sequence})

    def run(layers: int) -> tuple[float, int, int]:
        return _run(replace(config, layers=layers), devices, sequence, hardware, sequence_parallel, recompute)

    if runs is None:
        seconds, activations, sent = run(config.layers)
    else:
        times = (config.layers - runs[0]) / (runs[1] - runs[0])
        seconds, activations, sent = (a + times * (b - a) for a, b in zip(*map(run, runs), strict=True))
    flops = step_flops(llama_shape(config), 1, sequence, causal_half=True)
    mfu = flops / (devices * seconds * hardware.flops)
    return SimulatedStep(seconds, mfu, llama_parameters(config, devices), activations, sent)


def _run(
    config: LlamaConfig,
    devices: int,
    sequence: int,
    hardware: Hardware,
    sequence_parallel: bool,
    recompute: Recompute | None,
) -> tuple[float, int, int]:
    """Seconds, bytes of activations at most, bytes sent, on device 0."""
    cluster, make = Cluster(devices, hardware=hardware), SequenceLlama if sequence_parallel else Llama

    def program(group: Group) -> None:
        with torch.device("meta"):
            model = make(config, group, recompute, fused_attend).bfloat16()
            tokens = torch.empty(1, sequence, dtype=torch.long)
        with group.span("step"):
            model(tokens, tokens).backward()

    cluster.run(program)
    step = cluster.trace.during("step")
    return step.seconds, step.peak(0, "activations"), cluster.meters.count(0).bytes_sent
