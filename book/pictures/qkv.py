"""`draw_qkv`: self-attention on several devices, from x to the output, with every shape."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from book.pictures.kit.lanes import Gate, Stage, gates, lanes, seen, sentence, told
from book.pictures.kit.svg import Picture
from lib.costs.measure import Shape
from lib.devices.counts import counted
from lib.parallel.attention.attention import ParallelSelfAttention
from lib.parallel.attention.kernels import attend


def draw_qkv(devices: int, sequence: int = 1024, hidden: int = 768, heads: int = 12) -> Picture:
    """Queries, keys and values by columns, whole heads on every device, the output projection by rows, one all-reduce.

    Shapes and bytes are those of a run without data, of one sequence in bfloat16.

    Errors: ValueError for heads that the devices do not divide, or more than 8 devices.
    """
    between: dict[str, Shape] = {}

    def watched(q: Tensor, k: Tensor, v: Tensor, causal: bool, dropout: Callable[[Tensor], Tensor]) -> Tensor:
        def weights(x: Tensor) -> Tensor:  # stands where dropout stands: right behind the softmax
            between["weights"] = tuple(x.shape[1:])
            return dropout(x)

        taken = attend(q, k, v, causal, weights)  # (1, heads/P, S, d)
        between["taken"] = tuple(taken.shape[1:])
        between["q"] = tuple(q.transpose(1, 2).flatten(2).shape[1:])  # (S, hidden/P), as the projection leaves it
        return taken

    found = seen(lambda group: ParallelSelfAttention(hidden, heads, group, attend=watched), sequence, hidden, devices)
    enter, leave = gates(devices, sequence_parallel=False)
    mine = between["weights"][0]  # heads of one device
    of_heads = {"look": "sharded", "cut": 1, "wide": 1, "grid": (1, mine)}
    rows: list[Stage | Gate] = [
        Stage("x", found.inputs[""], "replicated"),
        enter,
        Stage("× Wq, Wk, Wv, each", (hidden, between["q"][1]), "sharded", cut=1, wide=1, tall=36, grid=(3, mine)),
        Stage("= Q, K, V, each", between["q"], "sharded", cut=1, wide=1, tall=36, grid=(3, mine)),
        Stage("scores Q Kᵀ / √d", between["weights"], **of_heads),
        Stage("weights: softmax", between["weights"], **of_heads),
        Stage("weights × V", between["taken"], **of_heads),
        Stage("heads side by side", found.inputs["out"], **of_heads),
        Stage("× Wo, by rows", found.weights["out"], "sharded", cut=0, tall=44),
        Stage("= partial sum", found.outputs["out"], "partial"),
        leave,
        Stage("output", found.outputs[""], "replicated"),
    ]
    size = hidden // heads
    title = f"Self-attention, {counted(heads, 'head')} on {counted(devices, 'device')}"
    sent = [f"forward: {sentence(found.forward)}", f"backward: {sentence(found.backward)}"]
    notes = [
        f"{counted(heads, 'head')} of d = {size} columns, {mine} on each device",
        "Each device sends (bfloat16)",
        *sent,
        "Boxes are not to scale.",
    ]
    desc = f"{title}. {told(rows)}. Each device sends {'; '.join(sent)}."
    return lanes(title, desc, rows, devices, notes)
