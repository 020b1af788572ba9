"""`draw_qkv`: self-attention on several devices, from x to the output, with every shape."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from book.pictures.kit.holders import count
from book.pictures.kit.lanes import Gate, Stage, gates, lanes, told
from book.pictures.kit.observe import Shape, observe, sentence
from book.pictures.kit.svg import Picture
from lib.devices import Cluster, Group
from lib.parallel.attention.attention import ParallelSelfAttention


def draw_qkv(devices: int, sequence: int = 1024, hidden: int = 768, heads: int = 12) -> Picture:
    """Queries, keys and values by columns, whole heads on every device, the output projection by rows, one all-reduce.

    Shapes and bytes are those of a run without data, of one sequence in bfloat16.

    Errors: ValueError for heads that the devices do not divide, or more than 8 devices.
    """
    seen = observe(lambda group: ParallelSelfAttention(hidden, heads, group), sequence, hidden, devices)
    with torch.device("meta"), torch.no_grad():
        shapes = Cluster(devices).run(_shapes, sequence, hidden, heads)[0]
    enter, leave = gates(devices, sequence_parallel=False)
    mine = shapes["scores"][0]  # heads of one device
    of_heads = {"look": "sharded", "cut": 1, "wide": 1, "grid": (1, mine)}
    rows: list[Stage | Gate] = [
        Stage("x", seen.inputs[""], "replicated"),
        enter,
        Stage("× Wq, Wk, Wv, each", (hidden, shapes["q"][1]), "sharded", cut=1, wide=1, tall=36, grid=(3, mine)),
        Stage("= Q, K, V, each", shapes["q"], "sharded", cut=1, wide=1, tall=36, grid=(3, mine)),
        Stage("scores Q Kᵀ / √d", shapes["scores"], **of_heads),
        Stage("weights: softmax", shapes["weights"], **of_heads),
        Stage("weights × V", shapes["taken"], **of_heads),
        Stage("heads side by side", shapes["joined"], **of_heads),
        Stage("× Wo, by rows", seen.weights["out"], "sharded", cut=0, tall=44),
        Stage("= partial sum", shapes["partial"], "partial"),
        leave,
        Stage("output", seen.outputs[""], "replicated"),
    ]
    size = hidden // heads
    title = f"Self-attention, {count(heads, 'head')} on {count(devices, 'device')}"
    sent = [f"forward: {sentence(seen.forward)}", f"backward: {sentence(seen.backward)}"]
    notes = [
        f"{count(heads, 'head')} of d = {size} columns, {mine} on each device",
        "Each device sends (bfloat16)",
        *sent,
        "Boxes are not to scale.",
    ]
    desc = f"{title}. {told(rows)}. Each device sends {'; '.join(sent)}."
    return lanes(title, desc, rows, devices, notes)


def _shapes(group: Group, sequence: int, hidden: int, heads: int) -> dict[str, Shape]:
    """What comes between the two projections on this device, without the batch dimension."""
    layer = ParallelSelfAttention(hidden, heads, group)
    own, common = layer.qkv.widths
    q, k, v = layer.qkv(torch.empty(1, sequence, hidden)).split([own, common, common], -1)  # (1, S, hidden/P) Shard(-1)
    of_heads = [y.unflatten(-1, (-1, layer.head_size)).transpose(1, 2) for y in (q, k, v)]  # (1, heads/P, S, d)
    scores = of_heads[0] @ of_heads[1].transpose(-2, -1) / math.sqrt(layer.head_size)  # (1, heads/P, S, S)  Shard(1)
    weights = scores.softmax(-1)  # (1, heads/P, S, S)  Shard(1)
    taken = weights @ of_heads[2]  # (1, heads/P, S, d)  Shard(1)
    joined = taken.transpose(1, 2).flatten(2)  # (1, S, hidden/P)  Shard(-1)
    partial = F.linear(joined, layer.out.weight)  # (1, S, hidden)  Partial
    stages = {"q": q, "scores": scores, "weights": weights, "taken": taken, "joined": joined, "partial": partial}
    return {name: tuple(x.shape[1:]) for name, x in stages.items()}
