"""`with pretended(8) as cuda`: a process that has no GPU says that it has 8, and works on the CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from lib.guest.gpus.attention import sharded_attention
from lib.guest.gpus.cuda import Cuda
from lib.guest.gpus.names import patches_of
from lib.guest.patches import Patches
from lib.guest.private_tensors import restorers

# torch.accelerator has the same functions for GPUs of all makers; some have other names there.
ACCELERATOR = {"current_device_index": "current_device", "current_device_idx": "current_device",
               "set_device_index": "set_device", "set_device_idx": "set_device", "device_index": "device",
               "get_memory_info": "mem_get_info"}  # fmt: skip
# What only a GPU can do. It raises where a program calls it, not before: many programs only look whether it is there.
ONLY_GPU = ("CUDAGraph", "graph", "make_graphed_callables", "cudart", "ExternalStream", "GreenContext", "MemPool",
            "CUDAPluggableAllocator", "caching_allocator_alloc", "caching_allocator_delete", "current_blas_handle",
            "current_solver_handle", "get_stream_from_external", "graph_pool_handle", "use_mem_pool",
            "change_current_allocator", "clock_rate", "power_draw", "temperature", "utilization", "memory_usage",
            "list_gpu_processes", "_compile_kernel")  # fmt: skip


@contextmanager
def pretended(per_node: int) -> Iterator[Cuda]:
    """While entered, `torch.cuda` says that there are `per_node` GPUs, in every thread, and whatever names one gets the
    CPU. Afterwards all is as before."""
    cuda, patches = Cuda(per_node), Patches()
    for where, name, value in (*patches_of(cuda), *_modules(cuda)):
        patches.set(where, name, value)
    restore = (0, lambda storage: None, lambda storage, place: storage if place.startswith("cuda") else None)
    restorers().insert(0, restore)  # torch.load: what was saved on a GPU, or is wanted on one
    try:
        with sharded_attention():
            yield cuda
    finally:
        restorers().remove(restore)
        patches.undo()


def _modules(cuda: Cuda) -> Iterator[tuple[Any, str, Any]]:
    """What stands in torch.cuda, in its parts and in torch.accelerator."""
    pretend = {name: getattr(cuda, name) for name in dir(cuda) if not name.startswith("_") or name == "_lazy_init"}
    for name in torch.cuda.__all__:
        if name.endswith(("Tensor", "Storage")) and hasattr(torch, name):
            pretend[name] = getattr(torch, name)
    pretend |= {name: _refused(name) for name in ONLY_GPU}
    parts = [torch.cuda.memory, torch.cuda.random, torch.cuda.streams, torch.cuda.graphs]
    for module in (torch.cuda, *parts):
        for name, value in pretend.items():
            if name in vars(module):
                yield module, name, value
    yield from ((torch.cuda.nvtx, name, _nothing) for name in torch.cuda.nvtx.__all__ if name != "range")
    yield from ((torch.cuda.profiler, name, _nothing) for name in ("start", "stop"))
    yield from ((torch, name, getattr(cuda, name)) for name in ("Stream", "Event"))
    yield torch.cuda, "StreamContext", cuda.stream
    yield torch.cuda.amp.common, "amp_definitely_not_available", lambda: False
    yield from _accelerator(pretend)


def _accelerator(pretend: dict[str, Any]) -> Iterator[tuple[ModuleType, str, Any]]:
    for module in (torch.accelerator, torch.accelerator.memory):
        for name in [name for name in torch.accelerator.__all__ if name in vars(module)]:
            same = ACCELERATOR.get(name, name)
            if same in pretend:
                yield module, name, pretend[same]
    yield torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda")
    yield torch.accelerator, "empty_host_cache", _nothing
    yield torch.accelerator, "Graph", _refused("Graph", torch.accelerator)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Marks for a profiler of GPUs: nobody reads them."""


def _refused(name: str, module: ModuleType = torch.cuda) -> Callable:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"{module.__name__}.{name} needs a GPU: GPUs are only pretended here, and everything runs on the CPU. "
            "Run the program without this call, which most programs have an option for"
        )

    is_class = isinstance(getattr(module, name, None), type)  # programs write its name in annotations, too
    return type(name, (), {"__new__": refuse}) if is_class else refuse
