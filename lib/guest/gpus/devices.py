"""Which GPUs a process sees, and which it uses, where none are."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from lib.devices.clock import Clock
from lib.devices.hardware import Hardware
from lib.guest.streams import clock_here

# Compute capability and number of multiprocessors, from the data sheets. Other hardware answers as an A100.
ARCHITECTURES = {"V100": (7, 0, 80), "A100": (8, 0, 108), "H100": (9, 0, 132), "H200": (9, 0, 132),
                 "B200": (10, 0, 148)}  # fmt: skip


class Devices:
    """The GPUs of a node, `per_node` of them, as one of its processes sees them."""

    def __init__(self, per_node: int):
        self._per_node, self._here = per_node, threading.local()

    @property
    def _clock(self) -> Clock | None:
        return clock_here()[0]

    @property
    def _hardware(self) -> Hardware | None:
        return self._clock.hardware if self._clock else None

    @property
    def _total(self) -> int:
        """Bytes of memory of a GPU: the hardware's; without any, a share of the host's."""
        if self._hardware:
            return int(self._hardware.memory)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // self._per_node

    def _index(self, device: Any = None) -> int:
        """The number of a device that is named in any of the ways of torch.cuda. RuntimeError when it is not there."""
        if isinstance(device, str):
            device = torch.device(device)
        index = device.index if isinstance(device, torch.device) else device
        index = self.current_device() if index is None else int(index)
        if not -1 <= index < self._per_node:
            raise RuntimeError(
                f"CUDA error: invalid device ordinal: cuda:{index}. The node has {self._per_node} pretended "
                f"GPU{'s' if self._per_node > 1 else ''}, cuda:0 to cuda:{self._per_node - 1}. "
                "Take LOCAL_RANK, not RANK, or simulate more devices per node (--nproc-per-node)"
            )
        return index

    def is_available(self) -> bool:
        return True

    is_initialized = is_tf32_supported = is_available

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return True

    def device_count(self) -> int:
        return self._per_node

    def current_device(self) -> int:
        return getattr(self._here, "index", 0)

    def set_device(self, device: Any) -> None:
        index = self._index(device)
        if index >= 0:  # as in torch.cuda, a negative one changes nothing
            self._here.index = index

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before = self.current_device()
        self.set_device(device)
        try:
            yield
        finally:
            self._here.index = before

    def device_of(self, x: Any) -> Any:
        return self.device(None)

    def can_device_access_peer(self, device: Any, peer_device: Any) -> bool:
        return self._index(device) != self._index(peer_device)

    def get_device_name(self, device: Any = None) -> str:
        return self.get_device_properties(device).name

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        properties = self.get_device_properties(device)
        return properties.major, properties.minor

    def get_device_properties(self, device: Any = None) -> SimpleNamespace:
        self._index(device)
        name = self._hardware.name if self._hardware else "GPU"
        major, minor, multiprocessors = ARCHITECTURES.get(name.split()[0], ARCHITECTURES["A100"])
        return SimpleNamespace(name=f"{name} (pretended)", major=major, minor=minor, total_memory=self._total,
                               multi_processor_count=multiprocessors, warp_size=32, is_integrated=False)  # fmt: skip

    def get_arch_list(self) -> list[str]:
        return ["sm_{}{}".format(*self.get_device_capability())]
