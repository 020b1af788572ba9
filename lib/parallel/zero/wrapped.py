"""Optimizers around an optimizer, which learning-rate schedulers and scalers take for one."""

from typing import Any

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer

from lib.devices import Group


class Wrapped(Optimizer):
    """What steps `self.optimizer`, and shows its `param_groups`, `defaults`, `state` and hooks as its own."""

    _step_supports_amp_scaling = False  # a scaler must not hand its scale to the optimizer inside

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer  # and nothing of Optimizer's own

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # it is being made
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused."""
        raise TypeError(
            f"a {type(self).__name__} is made for the parameters it got. Make a new one, for all that train now"
        )

    def __getstate__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} is bound to its parameters: copy its state_dict() instead")


class ShardedGradScaler(GradScaler):
    """`GradScaler` for pieces of `ShardedOptimizer` and `FullySharded`, and for weights that are cut over `group`.

    An infinity in one device's piece is one for all, so that all skip the same steps and keep the same scale. One
    all-reduce of 4 bytes per step. With a plain `GradScaler`, devices whose piece is finite would step alone.
    """

    def __init__(self, group: Group, device: str = "cpu", **options: Any):
        super().__init__(device, **options)
        self._group = group

    def _unscale_grads_(self, *args: Any, **kwargs: Any) -> dict[torch.device, torch.Tensor]:
        with torch._C.DisableTorchFunctionSubclass():  # a piece's gradient would refuse
            found = super()._unscale_grads_(*args, **kwargs)
        return {device: self._group.all_reduce(x, op="max") for device, x in found.items()}
