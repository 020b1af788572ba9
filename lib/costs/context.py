"""Context parallelism in closed form: who has how much to do, what travels, when it hides, and what is held.

For S tokens over P devices, with n = S/P tokens each, per layer and text:

                      sent per device, forward          and backward
    ring              (P-1) n kv                        2 (P-1) n kv    keys and values, and their gradients
    gathered          (P-1) n kv                        (P-1) n kv
    Ulysses           (P-1)/P n (2q + kv)               the same again

with q = heads x d numbers for the queries of one token, and kv = 2 x kv_heads x d for its keys and values.

Liu et al. 2023, arXiv 2310.01889 (ring); Jacobs et al. 2023, arXiv 2309.14509 (Ulysses); Llama Team 2024, arXiv
2407.21783, section 3.3.2 (gathered).
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from lib.costs.compute import forward_flops
from lib.costs.memory_terms import layer_activations
from lib.costs.shapes import ModelShape
from lib.costs.training_plan import TrainingPlan
from lib.devices.counts import check_counts
from lib.devices.hardware import Hardware, Link
from lib.parallel.attention.heads import check_heads
from lib.parallel.context.blocks import blocks_between
from lib.parallel.context.cut import Order, token_places

Way = Literal["ring", "gathered", "Ulysses"]


def pairs_by_hop(
    length: int, devices: int, order: Order, causal: bool = True, documents: Tensor | None = None
) -> list[list[int]]:
    """`table[rank][hop]`: how many (query, key) pairs device `rank` computes at that hop of a ring. Counted.

    `documents` (length,) are numbers: a token sees only those of its own.
    """
    pieces = [token_places(length, devices, rank, order) for rank in range(devices)]
    return [
        [
            sum(block.pairs for block in blocks_between(mine, pieces[(rank - hop) % devices], causal, documents))
            for hop in range(devices)
        ]
        for rank, mine in enumerate(pieces)
    ]


def cut_imbalance(
    length: int, devices: int, order: Order, causal: bool = True, documents: Tensor | None = None
) -> float:
    """The time of a ring whose messages are free, over that of one with equal work for all: 1 is best.

    A device waits for the keys of the one before it, and computes at its own pace otherwise, so what counts is the
    busiest device. Contiguous and causal it is (2P - 1) / P, next to 2.
    """
    work = [sum(hops) for hops in pairs_by_hop(length, devices, order, causal, documents)]
    return max(work) * devices / sum(work)


def attention_bytes(shape: ModelShape, tokens: int, devices: int, way: Way, itemsize: int = 2) -> tuple[float, float]:
    """Bytes that each device sends for one layer, forward and backward, of a text of `tokens` in all."""
    _check(shape, tokens, devices, way)
    queries, keys = shape.heads * shape.head_size, 2 * shape.kv_heads * shape.head_size
    n = tokens / devices * itemsize
    if way == "Ulysses":
        keys *= max(1, devices // shape.kv_heads)  # copies, so that each device has a head
        once = (devices - 1) / devices * n * (2 * queries + keys)
        return once, once
    trip = (devices - 1) * n * keys
    return (trip, 2 * trip) if way == "ring" else (trip, trip)


def attention_flops(shape: ModelShape, tokens: int, devices: int) -> float:
    """FLOPs of the causal scores of one layer's forward on each device, with equal work for all."""
    return forward_flops(shape, 1, tokens, causal_half=True)["scores"] / shape.layers / devices


def tokens_to_hide(hardware: Hardware, link: Link, shape: ModelShape, causal: bool = True, itemsize: int = 2) -> float:
    """From how many tokens per device on the messages of a ring's forward take no longer than its blocks.

    A hop computes 4 n² heads d FLOPs, half of it under a causal mask, while 2 n kv_heads d numbers travel. Causal:

        n >= itemsize kv_heads / heads x peak / bandwidth     (half of that where every token sees all)

    Neither d nor the number of devices matters, nor does tensor parallelism, which divides both kinds of heads.
    Latency is left out.
    """
    flops = 4 * shape.heads / (2 if causal else 1)  # per n² d
    moved = 2 * shape.kv_heads * itemsize  # per n d
    return moved / flops * hardware.reached / link.bandwidth


@dataclass(frozen=True)
class AttentionSeconds:
    """One layer's attention, forward, on each device: seconds of `compute`, of `messages`, and what shows of them."""

    compute: float
    messages: float
    exposed: float

    @property
    def total(self) -> float:
        """What passes on the clock."""
        return self.compute + self.exposed


def attention_seconds(
    shape: ModelShape, tokens: int, devices: int, way: Way, hardware: Hardware, link: Link
) -> AttentionSeconds:
    """Forward of one layer's causal attention, the sequence cut in zigzag. In a ring, each of P - 1 messages hides
    behind a block of the same length; what is gathered or exchanged shows in full."""
    sent, _ = attention_bytes(shape, tokens, devices, way)
    compute = attention_flops(shape, tokens, devices) / hardware.reached
    if devices == 1:
        return AttentionSeconds(compute, 0.0, 0.0)
    messages = link.seconds({"Ulysses": 4}.get(way, 1) * (devices - 1), sent)
    if way == "ring":
        hidden = (devices - 1) * min(compute / devices, messages / (devices - 1))
        return AttentionSeconds(compute, messages, messages - hidden)
    return AttentionSeconds(compute, messages, messages)


def layer_flops(shape: ModelShape, tokens: int, devices: int) -> dict[str, float]:
    """FLOPs of one layer's forward on each device: what grows with the tokens, and the scores, with their square."""
    check_counts("layer_flops", {"tokens": tokens, "devices": devices})
    parts = forward_flops(shape, 1, tokens, causal_half=True)
    linear = parts["projections"] + parts["MLP"]
    return {"linear": linear / shape.layers / devices, "scores": parts["scores"] / shape.layers / devices}


def context_memory(
    shape: ModelShape, tokens: int, devices: int, way: Way = "ring", tensor: int = 1, keep_all: bool = True
) -> dict[str, float]:
    """Bytes that one device keeps of one text of `tokens` for the backward, all layers, term by term.

    With `tensor` devices beside, tokens are cut over them too between the layers (sequence parallelism). Without
    `keep_all`, only the input of each layer is kept and the rest computed anew ("full" recomputation); the layer in
    work is then counted once. "visiting keys": what a device holds beside its own pieces, in one layer.
    """
    _check(shape, tokens, devices, way)
    if tokens % (devices * tensor):
        raise ValueError(f"{tokens} tokens cannot be cut evenly over {devices} x {tensor} devices")
    plan = TrainingPlan(sequence=tokens // devices, tensor=tensor, sequence_parallel=tensor > 1)
    layer = layer_activations(shape, plan)
    each = {
        "inputs and norms": layer["inputs"] + layer["norms"],
        "queries, keys, values": layer["queries, keys, values"] + layer["attention's output"] + layer["scores"],
        "MLP": layer["MLP"],
    }
    kv = 2 * 2 * max(shape.kv_heads / tensor, 1) * shape.head_size * tokens / devices
    others = {"ring": 2 * min(devices - 1, 1), "gathered": devices - 1, "Ulysses": 0}[way] * kv
    if keep_all:
        kept = {name: size * shape.layers for name, size in each.items()}
        others *= shape.layers if way == "gathered" else 1  # gathered keys are kept for the backward of their layer
    else:
        kept = {"inputs of the layers": shape.layers * layer["inputs"] / 2, **each}
    logits = {"logits": 4 * tokens / devices * shape.vocabulary / tensor}
    return {**kept, "visiting keys": others, **logits}


def _check(shape: ModelShape, tokens: int, devices: int, way: Way) -> None:
    check_counts("context parallelism", {"tokens": tokens, "devices": devices})
    if way not in get_args(Way):
        raise ValueError(f"way={way!r} must be one of {', '.join(map(repr, get_args(Way)))}")
    if way == "Ulysses":
        check_heads(shape.heads * shape.head_size, shape.heads, shape.kv_heads, devices)


def cut_heads(shape: ModelShape, tensor: int) -> ModelShape:
    """The heads that each of `tensor` devices has: what is left for Ulysses to divide."""
    check_heads(shape.heads * shape.head_size, shape.heads, shape.kv_heads, tensor)
    return replace(shape, heads=shape.heads // tensor, kv_heads=max(1, shape.kv_heads // tensor))
