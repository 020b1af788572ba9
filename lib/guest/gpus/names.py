"""Everything else in PyTorch that is told a device, or asks for one: what stands there while GPUs are pretended."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from lib.guest.gpus import batch_norm
from lib.guest.gpus.cuda import Cuda
from lib.guest.gpus.entries import CPU, Entries, factories
from lib.guest.private_tensors import DeviceContext

Patch = tuple[Any, str, Any]  # module or class, name, what stands there


def patches_of(cuda: Cuda) -> Iterator[Patch]:
    """All that has to stand elsewhere."""
    entries = Entries(cuda)
    yield from _tensors(entries)
    yield from _named_by_type()
    yield from _classes(entries)
    yield from _distributed(cuda, entries)
    yield from batch_norm.patches()
    # A script asks both for their versions before it turns bf16 on.
    yield torch.version, "cuda", "12.8"
    yield torch.cuda.nccl, "version", lambda: (2, 27, 5)
    # Megatron's own streams of random numbers change the state of a GPU's generator by hand.
    yield torch.cuda, "default_generators", (torch.default_generator,) * cuda.device_count()
    # It reads the source of what it compiles, and what stands here in place of torch.zeros has none that it knows.
    yield torch.jit, "script", lambda obj, *args, **kwargs: obj


def _tensors(entries: Entries) -> Iterator[Patch]:
    for where, name in factories():
        yield where, name, entries.maker(getattr(where, name))
    tensor = torch.Tensor
    yield tensor, "to", entries.to(tensor.to)
    yield tensor, "cuda", entries.cuda(tensor.to)
    yield tensor, "cpu", entries.back(tensor.cpu)
    yield tensor, "pin_memory", entries.back(tensor.cpu)
    yield tensor, "is_pinned", lambda x, *device: False
    yield tensor, "record_stream", lambda x, stream: None
    yield tensor, "type", _typed(tensor.type)
    yield torch, "set_default_tensor_type", _typed(torch.set_default_tensor_type)
    yield torch.UntypedStorage, "cuda", lambda storage, *args, **kwargs: storage.clone()
    yield torch.nn.Module, "to", entries.module_to(torch.nn.Module.to)
    yield torch.nn.Module, "to_empty", entries.told(torch.nn.Module.to_empty)


def _typed(function: Callable) -> Callable:
    """`function`, which may be told a type of tensor as a string: "torch.cuda.FloatTensor"."""
    return lambda *args, **kwargs: function(
        *(x.replace("torch.cuda.", "torch.") if isinstance(x, str) else x for x in args), **kwargs
    )


def _named_by_type() -> Iterator[Patch]:
    """Autocast. The CPU has its own, with lists of its own of what runs in low precision. A GPU's default is fp16."""
    init = torch.autocast.__init__

    def autocast(self: Any, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.get_autocast_dtype("cuda")
        init(self, device_type, dtype, *args, **kwargs)

    def on_cpu(function: Callable) -> Callable:
        return lambda device="cuda", *args: function("cpu" if device == "cuda" else device, *args)

    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    yield torch.autocast, "__init__", autocast
    yield torch, "is_autocast_enabled", on_cpu(enabled)
    yield torch, "get_autocast_dtype", lambda device: dtype("cpu" if enabled("cpu") and device == "cuda" else device)
    yield torch, "get_autocast_gpu_dtype", lambda: torch.get_autocast_dtype("cuda")


class _Stands(type(torch.Generator)):
    """The type of a class that stands for another one: what it makes are instances of that."""

    def __instancecheck__(cls, x: Any) -> bool:
        return isinstance(x, cls.__mro__[1])


def _classes(entries: Entries) -> Iterator[Patch]:
    real, init = torch.Generator, DeviceContext.__init__

    class Generator(real, metaclass=_Stands):
        def __new__(cls, device: Any = "cpu") -> torch.Generator:
            return real(entries.cpu(device, number=True))

    yield torch, "Generator", Generator
    yield DeviceContext, "__init__", lambda self, device: init(self, entries.cpu(device, number=True))


def _distributed(cuda: Cuda, entries: Entries) -> Iterator[Patch]:
    ddp, mesh = DistributedDataParallel.__init__, DeviceMesh.__init__
    fsdp = FullyShardedDataParallel.__init__

    def ddp_init(self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *a: Any, **kw: Any) -> None:
        for device in [*(device_ids or []), *([] if output_device is None else [output_device])]:
            cuda._index(device)
        ddp(self, module, None, None, *a, **kw)

    def mesh_init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        mesh(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def fsdp_init(self: Any, *args: Any, device_id: Any = None, **kwargs: Any) -> None:
        cuda._index(device_id)
        fsdp(self, *args, device_id=CPU, **kwargs)  # without, it insists on an accelerator

    yield DistributedDataParallel, "__init__", ddp_init
    yield DeviceMesh, "__init__", mesh_init
    yield FullyShardedDataParallel, "__init__", fsdp_init
    data_parallel = import_module("torch.nn.parallel.data_parallel")  # torch.nn.parallel has a function of this name
    yield data_parallel, "_get_available_device_type", lambda: None  # DataParallel calls its one module
    for module in (dist, dist.distributed_c10d):
        yield module, "is_nccl_available", lambda: True
    yield dist.distributed_c10d, "default_pg_nccl_timeout", timedelta(minutes=10)
