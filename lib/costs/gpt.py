"""What a GPT costs on P devices: parameters, FLOPs and synchronizations, by formula.

FLOPs: Narayanan et al. 2021, arXiv 2104.04473, equation 3; Korthikanti et al. 2022, arXiv 2205.05198, appendix A.
"""

from dataclasses import dataclass
from typing import Literal

from lib.parallel.attention.heads import check_heads
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.tensor.vocabulary import padded_vocabulary


@dataclass(frozen=True)
class Synchronization:
    """`calls` times, all devices, or `among` of them, meet in `verb` over a tensor that has `elements` when whole."""

    where: str
    direction: Literal["forward", "backward"]
    verb: Literal["all_reduce", "all_gather", "reduce_scatter"]
    calls: int
    elements: int
    among: int | None = None

    def sent(self, devices: int) -> float:
        """Elements that each device sends in all calls, on a ring: 2 (P-1)/P of the tensor, or half of it."""
        trips, devices = 2 if self.verb == "all_reduce" else 1, self.among or devices
        return self.calls * trips * self.elements * (devices - 1) / devices


def loss_synchronization(tokens: int) -> Synchronization:
    """What the loss over a cut vocabulary needs, of so many tokens."""
    return Synchronization("loss: maximum, sum, target", "forward", "all_reduce", 3, tokens)


def tensor_parallel_synchronizations(layers: int, hidden: int, tokens: int) -> list[Synchronization]:
    """Those of tensor parallelism alone, the same for a GPT and a Llama: f and g of every region, and the loss."""
    whole = tokens * hidden
    return [
        Synchronization("embedding", "forward", "all_reduce", 1, whole),
        Synchronization("attention", "forward", "all_reduce", layers, whole),
        Synchronization("mlp", "forward", "all_reduce", layers, whole),
        loss_synchronization(tokens),
        Synchronization("head", "backward", "all_reduce", 1, whole),
        Synchronization("mlp", "backward", "all_reduce", layers, whole),
        Synchronization("attention", "backward", "all_reduce", layers, whole),
    ]


def gpt_synchronizations(
    config: GPTConfig, batch: int, sequence: int, sequence_parallel: bool = False
) -> list[Synchronization]:
    """Every meeting of the devices in one forward and one backward pass of `GPT`, with its loss, nothing recomputed."""
    layers, hidden, tokens = config.layers, config.hidden, batch * sequence
    whole = tokens * hidden
    loss = loss_synchronization(tokens)
    if not sequence_parallel:
        return tensor_parallel_synchronizations(layers, hidden, tokens)
    regions = [
        each
        for where, calls in (("attention", layers), ("mlp", layers), ("head", 1))
        for each in (
            Synchronization(f"{where}: enter", "forward", "all_gather", calls, whole),
            Synchronization(f"{where}: enter, gradient", "backward", "reduce_scatter", calls, whole),
            Synchronization(f"{where}: input once more", "backward", "all_gather", calls, whole),
        )
    ]
    for where in ("attention", "mlp"):
        regions += [
            Synchronization(f"{where}: leave", "forward", "reduce_scatter", layers, whole),
            Synchronization(f"{where}: leave, gradient", "backward", "all_gather", layers, whole),
            Synchronization(f"{where}: bias", "backward", "all_reduce", layers, hidden),
        ]
    return [
        Synchronization("embedding", "forward", "reduce_scatter", 1, whole),
        *regions,
        loss,
        Synchronization("norms: weight and bias", "backward", "all_reduce", 2 * (2 * layers + 1), hidden),
        Synchronization("positions", "backward", "all_gather", 1, sequence * hidden),
        Synchronization("embedding, gradient", "backward", "all_gather", 1, whole),
    ]


def gpt_parameters(config: GPTConfig, devices: int = 1) -> int:
    """The parameters that each device holds.

    Cut are the embedding, padded, and in every layer all but the LayerNorms and the two biases that are added after a
    sum. Whole are these, the positions and the last LayerNorm. Raises ValueError when the devices do not divide the
    heads.
    """
    check_heads(config.hidden, config.heads, config.heads, devices)
    h = config.hidden
    cut = padded_vocabulary(config.vocabulary, devices) * h + config.layers * (12 * h * h + 7 * h)
    return cut // devices + config.positions * h + config.layers * 6 * h + 2 * h


def gpt_flops(config: GPTConfig, batch: int, sequence: int, recompute: bool = False, devices: int = 1) -> int:
    """FLOPs of the matrix products of one forward and backward pass, on each device.

    On one: 72 B s l h^2 (1 + s/6h + V/12lh); with full recomputation of the layers, whose forward then counts twice,
    96 B s l h^2 (1 + s/6h + V/16lh). The head, 6 B s h V, is the same in both. Scores are counted whole, as computed,
    though causal attention throws half of them away; a lookup in the embedding is no product.

    PyTorch ends a recomputation when nothing more is needed, so it runs fewer FLOPs where nothing follows the last
    product of a layer: without dropout, 8 B s h^2 fewer for each. Raises ValueError when the devices do not divide the
    heads.
    """
    check_heads(config.hidden, config.heads, config.heads, devices)
    h, vocabulary = config.hidden, padded_vocabulary(config.vocabulary, devices)
    layer = 24 * batch * sequence * h**2 + 4 * batch * sequence**2 * h  # forward
    head = 2 * batch * sequence * h * vocabulary
    return ((4 if recompute else 3) * config.layers * layer + 3 * head) // devices
