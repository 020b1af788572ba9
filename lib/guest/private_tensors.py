"""The part of `private.py` for PyTorch's tensors, modes, modules and checkpoints."""

import importlib
from collections.abc import Callable
from functools import partial
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


# ---- operators that programs add ----

library_of_cpp = take("torch._C", "_dispatch_library")
forget_operators = take("torch.library", "_clear_torch_ops_cache")


_known = (
    (take("torch._library.simple_registry", "singleton"), "_data"),
    (take("torch._library", "custom_ops"), "OPDEF_TO_LIB"),
    (take("torch._library", "custom_ops"), "OPDEFS"),
    (torch.library, "_impls"),
)


def read_operators() -> list[Any]:
    """What Python knows of operators, beside C++."""
    return [getattr(place, name) for place, name in _known]


def write_operators(known: list[Any]) -> None:
    """From now on it knows this."""
    for (place, name), value in zip(_known, known, strict=True):
        setattr(place, name, value)


# ---- settings of the process ----


def _setting(get: str, put: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return take("torch._C", get), take("torch._C", put)


# How to read and to write each. First those that programs set for a while, `with sdpa_kernel(...)`: they are read at
# every turn, and what C++ says itself takes a twentieth of the time that torch.backends takes.
FOR_A_WHILE = (
    _setting("_get_flash_sdp_enabled", "_set_sdp_use_flash"),
    _setting("_get_math_sdp_enabled", "_set_sdp_use_math"),
    _setting("_get_mem_efficient_sdp_enabled", "_set_sdp_use_mem_efficient"),
    _setting("_get_cudnn_sdp_enabled", "_set_sdp_use_cudnn"),
    _setting("_get_mkldnn_enabled", "_set_mkldnn_enabled"),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
)
FOR_ALL = (
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    _setting("_get_deterministic_fill_uninitialized_memory", "_set_deterministic_fill_uninitialized_memory"),
    _setting("_get_cudnn_benchmark", "_set_cudnn_benchmark"),
    _setting("_get_cudnn_deterministic", "_set_cudnn_deterministic"),
    _setting("_get_warnAlways", "_set_warnAlways"),
    (torch.__future__.get_swap_module_params_on_conversion, torch.__future__.set_swap_module_params_on_conversion),
    (torch.get_num_threads, torch.set_num_threads),
)
_printing = vars(take("torch._tensor_str", "PRINT_OPTS"))
PRINTING = (_printing.copy, _printing.update)  # for all too
# The older and the newer way to set the precision of float32.
OLDER_PRECISIONS = (
    _setting("_get_float32_matmul_precision", "_set_float32_matmul_precision"),
    _setting("_get_cudnn_allow_tf32", "_set_cudnn_allow_tf32"),
)
_get, _put = _setting("_get_fp32_precision_getter", "_set_fp32_precision_setter")
PRECISIONS = tuple(
    (partial(_get, backend, operation), partial(_put, backend, operation))
    for backend in ("generic", "cuda", "mkldnn")
    for operation in ("all", "matmul", "conv", "rnn")
    if backend != "generic" or operation == "all"
)

# ---- devices ----

DeviceContext = take("torch.utils._device", "DeviceContext")  # what `with torch.device(...)` enters
device_constructors = take("torch.utils._device", "_device_constructors")  # the functions that it tells the device

# ---- SyncBatchNorm: its base, and its messages ----

BatchNorm = take("torch.nn.modules.batchnorm", "_BatchNorm")
SyncedByMessages = take("torch.nn.modules._functions", "SyncBatchNorm")


def restorers() -> list[tuple[int, Any, Any]]:
    """Who puts a storage that torch.load reads on its device, the first first: (priority, tagger, restorer)."""
    return take("torch.serialization", "_package_registry")
