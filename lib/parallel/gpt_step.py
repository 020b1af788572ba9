"""One training step of a GPT of any size, counted while it runs: `gpt_costs` has the formulas, here is the run.

It runs on the meta device, which has shapes and no numbers, so 175 billion parameters need no memory.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lib.devices import Cluster, Group
from lib.parallel.block import Recompute
from lib.parallel.gpt import GPT
from lib.parallel.gpt_config import GPTConfig


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


class CountFlops(TorchDispatchMode):
    """While entered, adds up in `total` what PyTorch counts for the matrix products of this thread.

    PyTorch's own FlopCounterMode also follows which module runs, and so slows all devices down.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


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
        model = GPT(config, group, sequence_parallel, recompute).bfloat16()
        tokens = torch.empty(batch, config.positions, dtype=torch.long)
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # each block of memory once, however many tensors are views of it

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return x

    counter = CountFlops()
    watched = group.rank == 0
    with counter if watched else nullcontext():
        with saved_tensors_hooks(keep, lambda x: x) if watched else nullcontext():
            loss = model(tokens, tokens)
        activations = sum(storage.nbytes() for storage in kept.values())
        loss.backward()
    return sum(p.numel() for p in model.parameters()), activations, counter.total
