"""`draw_block`: a transformer layer as regions, replicated and sharded, with the collectives between them."""

from __future__ import annotations

from book.pictures.kit.lanes import Gate, Stage, gates, lanes, seen, sentence, told
from book.pictures.kit.svg import Picture
from lib.devices.counts import counted
from lib.parallel.gpt.block import ParallelBlock
from lib.parallel.sequence.model import SequenceBlock


def draw_block(
    devices: int, sequence_parallel: bool = False, sequence: int = 1024, hidden: int = 768, heads: int = 12
) -> Picture:
    """One `ParallelBlock` from its input to its output: what is a copy, what is a shard, where f and g stand.

    Shapes and bytes are those of a run without data, of one sequence in bfloat16.

    Errors: ValueError for sizes that the devices do not divide, or more than 8 devices.
    """
    Block = SequenceBlock if sequence_parallel else ParallelBlock
    found = seen(
        lambda group: Block(hidden, heads, group, dropout=0.1),
        sequence,
        hidden,
        devices,
        sequence_parallel,
    )
    outside = {"look": "sharded", "cut": 0} if sequence_parallel else {"look": "replicated"}
    enter, leave = gates(devices, sequence_parallel)
    inside = {"look": "sharded", "cut": 1}
    rows: list[Stage | Gate] = [
        Stage("x", found.inputs["norm1"], **outside),
        Stage("LayerNorm", found.outputs["norm1"], **outside),
        enter,
        Stage("attention: heads", found.inputs["attention.out"], **inside),
        leave,
        Stage("y = x + dropout", found.outputs["dropout"], **outside),
        Stage("LayerNorm", found.outputs["norm2"], **outside),
        enter,
        Stage("MLP: GeLU(X A)", found.inputs["mlp.down"], **inside, wide=1),
        leave,
        Stage("z = y + dropout", found.outputs[""], **outside),
    ]
    name = "TP + SP" if sequence_parallel else "TP"
    title = f"A layer on {counted(devices, 'device')}, {name}"
    sent = [f"forward: {sentence(found.forward)}", f"backward: {sentence(found.backward)}"]
    notes = ["Each device sends (bfloat16)", *sent]
    small = "With sequence parallelism, the backward also sums the small gradients of LayerNorm and bias."
    if not sequence_parallel and devices > 1:
        notes.append("Outlined: every device does the same work.")
    if sequence_parallel and devices > 1:
        notes.append("(the all-reduces: small gradients of LayerNorm and bias)")
    desc = f"{title}. {told(rows)}. Each device sends {'; '.join(sent)}." + (f" {small}" if sequence_parallel else "")
    return lanes(title, desc, rows, devices, notes, skips=[(0, 5), (5, 10)])
