"""`torch.compile` on simulated devices: left out with a warning, and refused around or inside of DDP and FSDP.

What is compiled gives the same numbers as what is not. But beside DDP or FSDP, the compiler decides when gradients are
ready and which of them travel together: the messages and the timeline shown here would be those of another program.
"""

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lib.guest import own
from lib.guest.callers import for_devices, warn
from lib.guest.private import patched
from lib.guest.private_tensors import call_of_modules, is_compiled_in_place

# By name: only who uses FSDP waits for its imports.
PARALLEL = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")
OFF = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")  # variables by which PyTorch leaves the compiler out itself
_under_way = threading.local()  # .calls: compiled calls that this thread is in


class Compiled(nn.Module):
    """What `torch.compile(model)` returns: as PyTorch's, a module around `model` that is `model` in all else."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self._modules["_orig_mod"] = model
        self._call = _compiled(model.__call__)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        model = _inner(self)
        if name == "_orig_mod" or model is None:
            return super().__getattr__(name)
        return getattr(model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        model = _inner(self)
        if model is None or name == "_call" or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            setattr(model, name, value)

    @property
    def training(self) -> bool:
        """As the model's."""
        return self._orig_mod.training

    @training.setter
    def training(self, value: bool) -> None:
        if _inner(self) is not None:
            self._orig_mod.training = value


def _inner(compiled: Compiled) -> nn.Module | None:
    """The model inside; None while nn.Module makes the outer one."""
    return vars(compiled).get("_modules", {}).get("_orig_mod")


def uncompiled(model: Callable | None = None, *, disable: bool = False, **options: Any) -> Any:
    """In the place of `torch.compile`. RuntimeError for a model that is parallel."""
    if model is None:
        return functools.partial(uncompiled, disable=disable, **options)
    if disable or "1" in map(os.environ.get, OFF):
        return model
    _refuse_if(_parallel_in((model, getattr(model, "__self__", None))))
    warn("torch.compile is left out on simulated devices: the program runs without it, with the same results")
    return Compiled(model) if isinstance(model, nn.Module) else _compiled(model)


@contextmanager
def compiler_left_out(size: int) -> Iterator[None]:
    """Around a run: `torch.compile` is `uncompiled` on devices, and DDP looks whether it meets what is compiled."""
    init, forward = DistributedDataParallel.__init__, DistributedDataParallel.forward

    @functools.wraps(init)
    def checked_init(self: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        if any(isinstance(part, Compiled) or is_compiled_in_place(part) for part in module.modules()):
            _refuse_if("DistributedDataParallel")
        init(self, module, *args, **kwargs)

    @functools.wraps(forward)
    def checked_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(_under_way, "calls", 0):
            _refuse_if("DistributedDataParallel")
        return forward(self, *args, **kwargs)

    with (
        patched(torch, compile=for_devices(torch.compile, uncompiled)),
        patched(DistributedDataParallel, __init__=for_devices(init, checked_init),
                forward=for_devices(forward, checked_forward)),
    ):  # fmt: skip
        yield


def _compiled(function: Callable) -> Callable:
    """`function`, which is called as it is. The first call looks what it has in hand, and who calls it."""
    looked = False

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal looked
        if not looked and own.here() is not None:
            looked = True
            _refuse_if(_parallel_in(chain(args, kwargs.values(), _around(function))))
            _refuse_if(_parallel_above(sys._getframe(1)))
        _under_way.calls = getattr(_under_way, "calls", 0) + 1
        try:
            return function(*args, **kwargs)
        finally:
            _under_way.calls -= 1

    return call


def _around(function: Callable) -> Iterator[Any]:
    """What a function can reach: its object, variables around it, and globals that it names."""
    yield getattr(function, "__self__", None)
    function = getattr(function, "__func__", function)
    if isinstance(function, FunctionType):
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # no value yet
                yield cell.cell_contents
        yield from map(function.__globals__.get, function.__code__.co_names)


def _parallel_in(things: Iterable[Any]) -> str | None:
    """The name of the kind of parallel module that is among `things`, or in what they hold."""
    held = chain.from_iterable((x, *getattr(x, "__dict__", {}).values()) for x in things)
    parts = chain.from_iterable(x.modules() for x in held if isinstance(x, nn.Module))
    return next(filter(None, map(_parallel, parts)), None)


def _parallel_above(frame: FrameType | None) -> str | None:
    """The same of the modules whose call led to `frame`."""
    while frame is not None:
        if frame.f_code is call_of_modules and (found := _parallel(frame.f_locals.get("self"))):
            return found
        frame = frame.f_back
    return None


def _parallel(module: Any) -> str | None:
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.")]
    return next((kind.__name__ for kind in kinds if kind.__name__ in PARALLEL), None)


def _refuse_if(kind: str | None) -> None:
    if kind is not None:
        raise RuntimeError(
            f"rank {own.here().group.me}: torch.compile and {kind} together. The compiler decides when gradients are "
            "ready and which travel together, so what is shown here would not be what the program sends. Leave "
            f"torch.compile out (most programs have an option for it), or set the variable {OFF[0]}=1, with which "
            "PyTorch leaves it out itself"
        )
