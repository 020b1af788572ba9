"""The part of `private.py` for PyTorch's tensors, modes, modules and checkpoints."""

import importlib
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from lib.guest.private import CPP, take

# ---- shapes without data ----

FakeTensor = take("torch._subclasses.fake_tensor", "FakeTensor")
FakeTensorMode = take("torch._subclasses.fake_tensor", "FakeTensorMode")
in_kernel = take("torch._subclasses.fake_tensor", "in_kernel_invocation_manager")  # while entered, fakes are on `meta`
# What FakeTensorMode raises where it needs values.
NEEDS_VALUES = tuple(
    take("torch._subclasses.fake_tensor", name)
    for name in ("DataDependentOutputException", "DynamicOutputShapeException", "UnsupportedOperatorException")
)


def resolve_process_group(name: str) -> dist.ProcessGroup:
    """The group that C++ knows by `name`."""
    return take(CPP, "_resolve_process_group")(name)


def waits_when_used(x: torch.Tensor) -> torch.Tensor:
    """`x`, the result of a functional collective, as a tensor that waits for it when it is used."""
    return take("torch.distributed._functional_collectives", "AsyncCollectiveTensor")(x)


# ---- modes of a thread ----

mode_stack = take("torch.utils._python_dispatch", "_get_current_dispatch_mode_stack")
pop_mode = take("torch.utils._python_dispatch", "_pop_mode")
push_mode = take("torch.utils._python_dispatch", "_push_mode")
without_modes = take("torch.utils._python_dispatch", "_disable_current_modes")

# ---- modules ----

call_of_modules = take("torch.nn", "Module")._call_impl.__code__  # what runs when a module is called


def is_compiled_in_place(module: torch.nn.Module) -> bool:
    """Whether `module.compile()` was called."""
    return module._compiled_call_impl is not None


def hooks_of_all() -> list[tuple[ModuleType, tuple[str, ...]]]:
    """Where the hooks of all modules and of all optimizers are kept: the module, and its names for them."""
    modules = map(importlib.import_module, ("torch.nn.modules.module", "torch.optim.optimizer"))
    return [(module, tuple(name for name in vars(module) if name.startswith("_global_"))) for module in modules]


# ---- devices ----

DeviceContext = take("torch.utils._device", "DeviceContext")  # what `with torch.device(...)` enters
device_constructors = take("torch.utils._device", "_device_constructors")  # the functions that it tells the device

# ---- SyncBatchNorm: its base, and its messages ----

BatchNorm = take("torch.nn.modules.batchnorm", "_BatchNorm")
SyncedByMessages = take("torch.nn.modules._functions", "SyncBatchNorm")


def restorers() -> list[tuple[int, Any, Any]]:
    """Who puts a storage that torch.load reads on its device, the first first: (priority, tagger, restorer)."""
    return take("torch.serialization", "_package_registry")
