"""What operations make of tensors without data, found without asking PyTorch about all that a tensor can be.

To be asked takes `FakeTensorMode` a tenth of a millisecond; and every layer of every device asks the same again.
"""

from typing import Any

import torch
from torch import Tensor

from lib.devices.engine.known_shapes import KnownShapes
from lib.guest.private_tensors import FakeTensor, FakeTensorMode, in_kernel

CPU = torch.device("cpu")


class Shapes(KnownShapes):
    """Those of one device, which computes in `mode`. All devices of a run share what they `know`."""

    kinds = (FakeTensor,)

    def __init__(self, mode: FakeTensorMode, know: dict):
        self._mode, self._known = mode, know

    def result(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """`func(*args, **kwargs)`, made by the mode of this device."""
        return self._view(func, args, kwargs) if self._is_view(func, args) else super().result(func, args, kwargs)

    def has_no_numbers(self, x: Tensor) -> bool:
        """Those that a program puts elsewhere are left to PyTorch."""
        return x.fake_device == CPU

    def ask(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What PyTorch says."""
        return self._mode.dispatch(func, (), args, kwargs)

    def make(self, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of the device, with memory of its own."""
        return FakeTensor(self._mode, super().make(shape, stride, dtype), CPU)

    def _is_view(self, func: Any, args: tuple) -> bool:
        x = args[0] if func.is_view and args else None
        return type(x) is FakeTensor and self.has_no_numbers(x)

    def _view(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Views lie in the memory of what they are made of: this is not remembered, but quickly made."""
        with in_kernel(self._mode):
            out = func(*args, **kwargs)
        made = out if isinstance(out, list | tuple) else [out]
        # `x.to(dtype)` of a tensor that has it is x itself.
        wrapped = [x if isinstance(x, FakeTensor) else FakeTensor(self._mode, x, CPU) for x in made]
        return type(out)(wrapped) if isinstance(out, list | tuple) else wrapped[0]
