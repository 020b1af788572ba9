"""`draw_mlp`: the tensor-parallel MLP, device by device, with or without sequence parallelism."""

from __future__ import annotations

from book.pictures.kit.lanes import Gate, Stage, gates, lanes, seen, sentence, told
from book.pictures.kit.svg import Picture
from lib.devices.counts import counted
from lib.parallel.sequence.model import SequenceMLP
from lib.parallel.tensor.mlp import ParallelMLP


def draw_mlp(
    devices: int, sequence_parallel: bool = False, sequence: int = 1024, hidden: int = 768, inner: int | None = None
) -> Picture:
    """Z = GeLU(X A) B of a `ParallelMLP`: A by columns, GeLU on what is finished, B by rows, partial sums, one sum.

    Shapes and bytes are those of a run without data, of one sequence in bfloat16.

    Errors: ValueError for sizes that the devices do not divide, or more than 8 devices.
    """
    MLP = SequenceMLP if sequence_parallel else ParallelMLP
    found = seen(lambda group: MLP(hidden, group, inner), sequence, hidden, devices, sequence_parallel)
    outside = {"look": "sharded", "cut": 0} if sequence_parallel else {"look": "replicated"}
    up, down, columns = found.weights["up"], found.weights["down"], found.outputs["up"]
    partial = (columns[0], down[1])  # every device's product has all tokens and all columns
    enter, leave = gates(devices, sequence_parallel)
    rows: list[Stage | Gate] = [
        Stage("X", found.inputs["up"], **outside),
        enter,
        Stage("× A, by columns", up, "sharded", cut=1, wide=1, tall=36),
        Stage("= X A", columns, "sharded", cut=1, wide=1),
        Stage("GeLU(X A)", found.inputs["down"], "sharded", cut=1, wide=1),
        Stage("× B, by rows", down, "sharded", cut=0, tall=44),
        Stage("= partial sum", partial, "partial"),
        leave,
        Stage("Z", found.outputs["down"], **outside),
    ]
    name = "TP + SP" if sequence_parallel else "TP"
    title = f"The MLP on {counted(devices, 'device')}, {name}"
    sent = [f"forward: {sentence(found.forward)}", f"backward: {sentence(found.backward)}"]
    notes = ["Each device sends (bfloat16)", *sent, "Boxes are not to scale."]
    desc = f"{title}. {told(rows)}. Each device sends {'; '.join(sent)}."
    return lanes(title, desc, rows, devices, notes)
