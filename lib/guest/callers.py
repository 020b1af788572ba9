"""Functions of Python that mean something else on a simulated device than in a process."""

import functools
import sys
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from lib.devices.engine.wording import is_the_readers
from lib.guest import own

_TORCH = f"{Path(torch.__file__).parent}/"
# What every call of torch.distributed goes through, whoever makes it.
_ON_THE_WAY = (
    f"{Path(__file__).parent}/",
    *(
        f"{_TORCH}distributed/{file}"
        for file in ("distributed_c10d", "c10d_logger", "_functional_coll", "nn/functional")
    ),
    *(f"{_TORCH}{file}" for file in ("_ops.py", "_library/", "autograd/function.py")),
)


@functools.cache
def is_a_guests(file: str) -> bool:
    """Whether the code in `file` is the program's own, not a library's."""
    return is_the_readers(file) and not file.startswith("<frozen") and not _installed_elsewhere(Path(file))


def _installed_elsewhere(file: Path) -> bool:
    """Whether pip has put it into a folder of another name, as `pip install --target libs` does."""
    return any(str(folder) in sys.path and any(folder.glob("*.dist-info")) for folder in file.parents)


def is_pytorchs(frame: FrameType) -> bool:
    """Whether PyTorch itself made the call of torch.distributed that led to `frame`, for reasons of its own."""
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_ON_THE_WAY):
        frame = frame.f_back
    return frame.f_code.co_filename.startswith(_TORCH)


def for_guests(real: Callable, simulated: Callable) -> Callable:
    """`simulated` where the program of a device calls it, `real` where a library or somebody else does."""

    @functools.wraps(real)
    def either(*args: Any, **kwargs: Any) -> Any:
        ours = own.here() is not None and is_a_guests(sys._getframe(1).f_code.co_filename)
        return (simulated if ours else real)(*args, **kwargs)

    return either


def for_devices(real: Callable, simulated: Callable) -> Callable:
    """`simulated` in the thread of a device, whoever calls it there, and `real` elsewhere."""

    @functools.wraps(real)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (real if own.here() is None else simulated)(*args, **kwargs)

    return either


def refused(what: str, instead: str) -> Callable:
    """A function that raises RuntimeError: `what` cannot be, and what to do instead."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"rank {own.here().group.me}: {what}. {instead}")

    return refuse


def warn(text: str) -> None:
    """A warning at the line of the program that led here."""
    for depth in count(1):
        frame = sys._getframe(depth)
        if frame.f_back is None or is_a_guests(frame.f_code.co_filename):
            warnings.warn(text, stacklevel=depth + 1)
            return
