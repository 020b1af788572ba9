"""Draws every static figure of the book: `python figures/make.py`. The same bytes every time; a test compares
them.

One function per figure. What a figure shows is computed: shapes by the split rule, numbers by a run of the
engine.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import Element

import torch

from book import (
    Picture,
    draw_block,
    draw_matmul,
    draw_mlp,
    draw_qkv,
    draw_tensor,
    element,
    stack,
)
from book.pictures.batch import draw_training_step
from book.pictures.hops import draw_hops, hops
from book.pictures.kit.blocks import arrow, block, hatches, label, tag
from book.pictures.kit.holders import shape_text
from book.pictures.kit.lanes import Gate, Stage, gates, lanes, told
from book.pictures.kit.language import paint
from book.pictures.kit.legend import legend
from book.pictures.verbs import draw_verbs
from lib import Cluster, Group, Partial, Replicate, Shard, all_gather, gather_from
from lib.devices import algorithms


def column_sharding() -> Picture:
    """W [4, 6] whole, then as two [4, 3]: each device makes half of the columns, and they are set side by
    side."""
    before = draw_matmul((3, 4), (4, 6), devices=1, split="column", gather=False, key=False)
    return stack("Column sharding, before and after", before, draw_matmul((3, 4), (4, 6), devices=2, split="column"))


def row_sharding() -> Picture:
    """W [4, 6] whole, then as two [2, 6], X split to match: each device makes a partial sum, and they are
    added."""
    before = draw_matmul((3, 4), (4, 6), devices=1, split="column", gather=False, key=False)
    return stack("Row sharding, before and after", before, draw_matmul((3, 4), (4, 6), devices=2, split="row"))


def placements() -> Picture:
    """The same small tensor as Shard, Replicate and Partial over 2 devices."""
    x = torch.arange(1, 9).reshape(2, 4)  # (2, 4)
    first = torch.tensor([[1, 1, 2, 2], [3, 3, 4, 4]])  # (2, 4)  any split of the sum will do
    return stack(
        "The three placements of a tensor on 2 devices",
        draw_tensor(x, "X", Shard(1), 2),
        draw_tensor(x, "X", Replicate(), 2),
        draw_tensor(x, "X", Partial(), 2, local=[first, x - first]),
    )


def program(group: Group, x: torch.Tensor) -> torch.Tensor:
    y = x * (group.rank + 1)
    return group.all_reduce(y)


def one_program_many_devices(devices: int = 4) -> Picture:
    """One program text, the devices that run it, the group through which they talk, and the list of
    results."""
    x = torch.tensor([1, 2])  # (2,)
    locals_ = Cluster(devices).run(lambda group, x: x * (group.rank + 1), x)
    outputs = Cluster(devices).run(program, x)
    code = [
        "def program(group, x):",
        *inspect.getsource(program).splitlines()[1:],
        "",
        f"outputs = Cluster({devices}).run(program, x)",
    ]
    pitch, size = 464 / devices, (32, 26)
    body = [
        hatches(range(devices)),
        label(8, 24, "One program, many devices", bold=True, size=15),
        label(472, 24, f"x = {x.tolist()}", "end"),
        element(
            "rect",
            x=8,
            y=40,
            width=464,
            height=24 + 19 * len(code),
            rx=6,
            fill="currentColor",
            fill_opacity=".07",
        ),
        element(
            "g",
            *[element("text", line, x=22, y=64 + 19 * i, style="white-space:pre") for i, line in enumerate(code)],
            font_family="ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace",
        ),
    ]
    top = 64 + 19 * len(code)
    bus = top + 156
    for rank in range(devices):
        middle = 8 + pitch * (rank + 0.5)
        left = middle - size[0]
        body += [
            arrow((middle, top), (middle, top + 28)),
            element(
                "rect",
                x=middle - 52,
                y=top + 32,
                width=104,
                height=96,
                rx=6,
                fill="none",
                stroke=paint(rank).ink,
                stroke_width=1.5,
            ),
            tag(middle - 28, top + 50, rank),
            label(middle, top + 82, f"y {shape_text(locals_[rank].shape)}", "middle"),
            block(left, top + 92, 1, 2, size, "partial", rank, values=[[str(v) for v in locals_[rank].tolist()]]),
            arrow((middle, top + 130), (middle, bus - 2)),
            arrow((middle, bus + 30), (middle, bus + 56)),
            block(
                left,
                bus + 62,
                1,
                2,
                size,
                "replicated",
                rank,
                values=[[str(v) for v in outputs[rank].tolist()]],
            ),
            label(middle, bus + 106, f"outputs[{rank}]", "middle"),
        ]
    body += [
        element("rect", x=8, y=bus, width=464, height=30, rx=6, fill="none", stroke="currentColor", stroke_width=2),
        label(240, bus + 20, f"group of {devices}: all_reduce adds the y of all ranks", "middle"),
    ]
    desc = (
        f"The same program runs on {devices} devices. Each computes its own y: "
        + ", ".join(f"rank {rank} has {y.tolist()}" for rank, y in enumerate(locals_))
        + f". Through their group they add them up (all-reduce), and every rank "
        f"returns {outputs[0].tolist()}: the run gives a list of {devices} results, one per rank."
    )
    return Picture(480, bus + 120, "One program, many devices", desc, [node for node in body if node is not None])


def verbs() -> Picture:
    """All the collectives on 4 devices, before and after."""
    return draw_verbs()


def ring_allreduce(devices: int = 4) -> Picture:
    """The ring: at the start, when the pieces are summed, when everybody has them."""
    steps = hops(algorithms.ring, devices)
    names = {0: "start", devices - 1: "first trip: added up", 2 * (devices - 1): "second trip: handed out"}
    return stack("A ring all-reduce", *[draw_hops(steps, step, f"Ring, {name}") for step, name in names.items()])


def data_parallel_step() -> Picture:
    """Four stages of a training step: alike, gradients of one's own samples, their mean, the same update."""
    stages = ("broadcast", "backward", "all-reduce", "update")
    return stack("A data-parallel training step", *[draw_training_step(4, stage) for stage in stages])


def placement_moves() -> Picture:
    """The placements as places, and the moves between them: the verb, the bytes each device sends, the way back."""
    left, right, up, down = 8, 344, 60, 300
    places = {"Partial()": (left, up), "Replicate()": (right, up), "Shard(0)": (left, down), "Shard(1)": (right, down)}
    looks = {"Partial()": "partial", "Replicate()": "replicated", "Shard(0)": "sharded", "Shard(1)": "sharded"}
    shapes = {"Shard(0)": (1, 2), "Shard(1)": (2, 1)}
    body = [hatches(range(2)), label(8, 24, "Moves between placements", bold=True, size=15)]
    for name, (x, y) in places.items():
        frame = element("rect", x=x, y=y, width=128, height=92, rx=6, fill="none", stroke="currentColor")
        body += [frame, label(x + 64, y + 22, name, "middle", bold=True)]
        rows, cols = shapes.get(name, (2, 2))
        for rank in range(2):
            body.append(block(x + 14 + 54 * rank, y + 36, rows, cols, (22, 22), looks[name], rank))
    across = (left + 136, right - 8)
    for y, words, back, points in (
        (up + 28, ["all-reduce", "2(P-1)/P · N"], "back: nothing", across),
        (up + 76, ["keep on one: free"], "", across[::-1]),
        (down + 44, ["all-to-all", "(P-1)/P² · N"], "back: all-to-all", across),
    ):
        body.append(arrow((points[0], y), (points[1], y)))
        body += [label(240, y - 8 - 16 * (len(words) - 1 - i), word, "middle") for i, word in enumerate(words)]
        body.append(label(240, y + 18, back, "middle", size=12))
    down_lines = (
        (left + 40, ["reduce-scatter", "(P-1)/P · N", "back: all-gather"], (up + 100, down - 8), "start"),
        (right + 24, ["all-gather", "(P-1)/P · N", "back: reduce-", "scatter, or slice"], (down - 8, up + 100), "end"),
        (right + 48, ["slice: free", "back: all-", "gather"], (up + 100, down - 8), "start"),
    )
    for x, words, (start, end), side in down_lines:
        body.append(arrow((x, start), (x, end)))
        anchor, at = ("end", x - 10) if side == "end" else (None, x + 10)
        body += [
            label(at, 212 + 17 * i, word, anchor, size=12 if word.startswith(("back", "gather", "scatter,")) else None)
            for i, word in enumerate(words)
        ]
    body.append(label(8, down + 118, "N: bytes of the whole tensor. P: devices (here 2). Sent by each device."))
    desc = (
        "Four places and the moves between them. Partial to Replicate: all-reduce, 2(P-1)/P N bytes, backward nothing. "
        "Partial to Shard: reduce-scatter, (P-1)/P N, backward all-gather. Shard to Replicate: all-gather, (P-1)/P N, "
        "backward reduce-scatter, or a slice. Shard to another Shard: all-to-all, (P-1)/P² N, backward all-to-all. "
        "Replicate to Shard: a slice, free, backward all-gather. Replicate to Partial: keep it on one device, free."
    )
    return Picture(480, down + 130, "Moves between placements", desc, [node for node in body if node is not None])


def _gradients(group: Group, gather: object, factors: list[list[int]]) -> tuple[list[int], list[int]]:
    """Gather a number of each device, and multiply the whole by this device's factors: the gradients of both."""
    x = torch.ones(1, requires_grad=True)  # (1,)  Shard(0)
    y = gather(x, group, 0)  # (P,)  Replicate
    y.retain_grad()
    (y * torch.tensor(factors[group.rank])).sum().backward()
    return y.grad.int().tolist(), x.grad.int().tolist()


def two_backwards() -> Picture:
    """Back from an all-gather: a slice if all devices compute the same with it, a reduce-scatter if they do not."""
    cases = (
        ("If every device then computes the same: slice", gather_from, [[4, 7], [4, 7]], "replicated", "slice"),
        ("If each computes something else: reduce-scatter", all_gather, [[3, 1], [2, 5]], "partial", "reduce-scatter"),
    )
    size, y, said = (40, 26), 24.0, []
    body = [hatches(range(2))]
    for title, gather, factors, look, verb in cases:
        runs = Cluster(2).run(_gradients, gather, factors)
        body.append(label(8, y, title, bold=True, size=15))
        body += [
            label(72, y + 22, "gradient of the whole", size=12),
            label(332, y + 22, "gradient of its piece", size=12),
        ]
        for rank, (whole, piece) in enumerate(runs):
            row = y + 32 + 40 * rank
            body += [
                tag(8, row + 13, rank, 52),
                block(72, row, 1, 2, size, look, rank, values=[[str(v) for v in whole]]),
                block(332 + size[0] * rank, row, 1, 1, size, "sharded", rank, values=[[str(piece[0])]]),
            ]
            said.append(f"rank {rank} has the gradient {whole} of the whole and {piece} of its piece")
        body.append(arrow((170, y + 65), (316, y + 65)))
        body += [label(243, y + 57, verb, "middle"), label(243, y + 84, f"{gather.__name__}", "middle", size=12)]
        said.append(f"{title}, as {gather.__name__} does")
        y += 146
    explained, height = legend(8, y - 24, ["replicated", "partial", "sharded", "arrow"])
    desc = "Two ways back from an all-gather on 2 devices. " + ". ".join(said) + "."
    return Picture(480, y + height - 12, "Two ways back from an all-gather", desc, [*body, *explained])


def all_reduce_halves(devices: int = 4) -> Picture:
    """Between two parallel regions: one all-reduce, and the same all-reduce pulled apart into its halves."""
    shape = (1024, 768)  # (s, h) of GPT-2
    whole, own = {"shape": shape, "look": "replicated"}, {"shape": (1024 // devices, 768), "look": "sharded", "cut": 0}
    f, g = gates(devices, sequence_parallel=False)
    f_bar, g_bar = gates(devices, sequence_parallel=True)
    f_bar = Gate(f_bar.name, "all-gather", "reduce-scatter")
    pictures = []
    for title, enter, leave, between in (
        ("The all-reduce in one place (TP)", f, g, whole),
        ("Its halves, pulled apart (TP + SP)", f_bar, g_bar, own),
    ):
        rows = [
            Stage("end of a region", shape, "partial"),
            leave,
            Stage("dropout, residual", **between),
            Stage("LayerNorm", **between),
            enter,
            Stage("next region", **whole),
        ]
        pictures.append(lanes(title, f"{title}. {told(rows)}.", rows, devices))
    return stack("An all-reduce, and its two halves", *pictures)


def parallel_mlp() -> Picture:
    """The MLP of GPT-2 on 4 devices: by columns, GeLU, by rows, and one all-reduce."""
    return draw_mlp(4)


def layer_regions() -> Picture:
    """One layer of GPT-2 on 4 devices: what tensor parallelism leaves replicated, and with sequence parallelism."""
    blocks = [draw_block(4, sequence_parallel) for sequence_parallel in (False, True)]
    return stack("A transformer layer on 4 devices, without and with sequence parallelism", *blocks)


def parallel_attention() -> Picture:
    """Self-attention of GPT-2 on 4 devices, with every shape."""
    return draw_qkv(4)


def two_worlds() -> Picture:
    """The same program on 4 simulated devices in one process, and on 4 processes."""
    width, ranks = 480, range(4)

    def frame(x: float, y: float, w: float, h: float, dashed: bool = False) -> Element:
        dashes = "6 4" if dashed else None
        return element(
            "rect", x=x, y=y, width=w, height=h, rx=6, fill="none", stroke="currentColor", stroke_dasharray=dashes
        )

    body = [frame(120, 8, 240, 44), label(240, 27, "program(group)", "middle", bold=True)]
    body += [label(240, 44, "the same lines", "middle", size=12)]
    body += [arrow((180, 56), (180, 84), (116, 84), (116, 104)), arrow((300, 56), (300, 84), (364, 84), (364, 104))]
    body += [
        label(116, 122, "Cluster(4)", "middle", bold=True),
        label(364, 122, "Processes(4), torchrun", "middle", bold=True),
    ]
    body += [frame(8, 134, 216, 104), label(16, 152, "one process", size=12)]
    body += [tag(16 + 51 * r, 182, r, 46) for r in ranks]
    body += [label(16, 218, "take turns; virtual clock", size=12), label(16, 233, "tensors are handed over", size=12)]
    for r in ranks:
        x = 256 + 55 * r
        body += [frame(x, 134, 51, 62), tag(x + 3, 172, r, 45), label(x + 25.5, 152, "process", "middle", size=12)]
    body += [frame(256, 204, 216, 34, dashed=True), label(364, 226, "gloo or NCCL: bytes travel", "middle", size=12)]
    body += [label(240, 262, "the same values, gradients, meters and errors", "middle")]
    desc = (
        "One program, program(group), with two arrows. Left, Cluster(4): ranks 0 to 3 in one process; they take turns, "
        "time is virtual, tensors are handed over. Right, Processes(4) or torchrun: ranks 0 to 3 in a process each, "
        "which talk through gloo or NCCL. Both give the same values, gradients, meters and errors."
    )
    return Picture(width, 272, "One program, simulated and real", desc, body)


FIGURES: tuple[Callable[[], Picture], ...] = (
    column_sharding,
    row_sharding,
    placements,
    one_program_many_devices,
    verbs,
    placement_moves,
    ring_allreduce,
    data_parallel_step,
    two_backwards,
    all_reduce_halves,
    parallel_mlp,
    layer_regions,
    parallel_attention,
    two_worlds,
)

if __name__ == "__main__":
    for figure in FIGURES:
        figure().save(Path(__file__).with_name(f"{figure.__name__}.svg"))
