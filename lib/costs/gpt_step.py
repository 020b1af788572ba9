"""One training step of a GPT of any size, counted while it runs: `gpt_costs` has the formulas, here is the run.

It runs on the meta device, which has shapes and no numbers, so 175 billion parameters need no memory.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from lib.costs.kept import watch_saved
from lib.devices import Cluster, Group
from lib.parallel.gpt.block import Recompute
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT
from lib.parallel.sequence.model import SequenceGPT


@dataclass(frozen=True)
class StepCounts:
    """What one device holds and does in one forward and one backward pass.

    `activations` are the bytes kept for the backward when the forward is done, besides the parameters; `flops` those
    of matrix products; `calls` the collectives by verb, and `sent` their bytes. Numbers have 16 bits.
    """

    parameters: int
    activations: int
    flops: int
    calls: dict[str, int]
    sent: int


def measure_step(
    config: GPTConfig,
    devices: int,
    batch: int = 1,
    sequence_parallel: bool = False,
    recompute: Recompute | None = None,
) -> StepCounts:
    """Forward, loss and backward of `batch` texts of full length on `devices`. Returns the counts of rank 0.

    Nothing is computed by formula: the model counts its parameters, autograd what it keeps, PyTorch the FLOPs, the
    engine what is sent. A layer costs about 20 ms per device: 96 layers on 8 devices, some 15 to 25 seconds.
    """
    cluster = Cluster(devices)
    parameters, activations, flops = cluster.run(_step, config, batch, sequence_parallel, recompute)[0]
    calls = {verb: cluster.meters.count(0, verb).calls for verb in cluster.meters.verbs()}
    return StepCounts(parameters, activations, flops, calls, cluster.meters.count(0).bytes_sent)


def _step(
    group: Group, config: GPTConfig, batch: int, sequence_parallel: bool, recompute: Recompute | None
) -> tuple[int, int, int]:
    """Parameters; on rank 0 also bytes kept and FLOPs: all devices do the same, and counting takes time."""
    with torch.device("meta"):
        model = (SequenceGPT if sequence_parallel else GPT)(config, group, recompute).bfloat16()
        tokens = torch.empty(batch, config.positions, dtype=torch.long)
    watched = group.rank == 0
    counter = FlopCounterMode(display=False)
    with counter if watched else nullcontext():
        with watch_saved(model) if watched else nullcontext(list) as kept:
            loss = model(tokens, tokens)
        activations = sum(block.size for block in kept())
        loss.backward()
    return sum(p.numel() for p in model.parameters()), activations, counter.get_total_flops()
