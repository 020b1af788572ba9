"""What ZeRO costs: bytes of model state and elements sent per device, by the paper's formulas, and as really held.

Rajbhandari et al. 2020, arXiv 1910.02054, sections 3.1, 5 and 7.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lib.parallel.zero.optimizer import ShardedOptimizer
from lib.parallel.zero.wrapped import Wrapped

STAGES = (0, 1, 2, 3)  # 0 is plain data parallelism


@dataclass(frozen=True)
class ModelState:
    """Bytes on one device."""

    parameters: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """All three."""
        return self.parameters + self.gradients + self.optimizer


def zero_bytes(parameters: float, devices: int, stage: int, working: int = 2, optimizer: int = 12) -> ModelState:
    """Bytes that each of `devices` holds of a model of so many `parameters` at `stage` of ZeRO.

    Per parameter: `working` bytes for itself and as many for its gradient, and `optimizer` bytes of optimizer state.
    The defaults are mixed-precision Adam: 16-bit parameters and gradients; master weights, momentum and variance in
    float32. Left out are activations, buckets on their way and a layer that is gathered. Paper: figure 1, table 1.
    """
    _check(devices, stage)
    share = parameters / devices
    return ModelState(
        parameters=working * (share if stage >= 3 else parameters),
        gradients=working * (share if stage >= 2 else parameters),
        optimizer=optimizer * (share if stage >= 1 else parameters),
    )


def zero_volume(parameters: float, devices: int, stage: int, micro_batches: int = 1) -> float:
    """Elements that each device sends per optimizer step, on a ring: the paper's 2P, 2P, 2P, 3P, times (N-1)/N.

    One trip round the ring moves (N-1)/N of the parameters. With `micro_batches` for each step, the gradients of stage
    2 and both the gathers and the gradients of stage 3 travel for each of them. Paper: section 7.
    """
    _check(devices, stage)
    trips = {0: 2, 1: 2, 2: micro_batches + 1, 3: 3 * micro_batches}[stage]
    return trips * parameters * (devices - 1) / devices


def model_state(module: nn.Module, optimizer: Optimizer) -> ModelState:
    """Bytes of model state that this device really holds now. Memory that several tensors share counts once.

    What the optimizer keeps beside the parameters and their gradients is its own: its state, and master weights.
    Adam also counts its steps: 4 bytes for each tensor that it was given.
    """
    parameters, stepped = list(module.parameters()), []
    while isinstance(optimizer, Wrapped):
        stepped += optimizer.pieces if isinstance(optimizer, ShardedOptimizer) else optimizer.parameters
        optimizer = optimizer.optimizer
    stepped += [p for some in optimizer.param_groups for p in some["params"]]
    state = [x for of_one in optimizer.state.values() for x in of_one.values()]
    seen: set[int] = set()
    return ModelState(
        parameters=_bytes(parameters, seen),
        gradients=_bytes([p.grad for p in (*parameters, *stepped)], seen),
        optimizer=_bytes([*stepped, *state], seen),
    )


def _bytes(tensors: Iterable[Any], seen: set[int]) -> int:
    """Bytes of the storages behind `tensors` that are not in `seen`, and adds them to it."""
    storages = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors if isinstance(x, Tensor)}
    new = storages.keys() - seen
    seen |= new
    return sum(storages[key] for key in new)


def _check(devices: int, stage: int) -> None:
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r} of ZeRO must be one of {STAGES}; 0 is plain data parallelism")
    if devices < 1:
        raise ValueError(f"devices={devices} must be at least 1")
