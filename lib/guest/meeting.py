"""The half of a process group that knows how: who it is, how a device meets the others, how results are written."""

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lib.devices.collectives import Collective
from lib.devices.group import Group
from lib.guest.messages import Messages
from lib.guest.own import Device, here
from lib.guest.uneven import UnevenAllToAll
from lib.guest.work import Work

Write = Callable[[Any], None]


class Meeting(dist.ProcessGroup):
    """The process group of one device. `group`: where the verbs are."""

    supports_splitting = supports_coalescing = supports_time_estimate = False
    bound_device_id = None
    group_name = group_desc = None  # over the properties of C++, which know nothing of a Python group
    _device_types = (torch.device("cpu"),)

    def __init__(self, device: Device, group: Group):
        super().__init__(group.rank, group.size)
        self.group, self._device = group, device
        self._messages = Messages(device, group, self._copy)

    # ---- who we are ----

    def size(self) -> int:
        return self.group.size

    def rank(self) -> int:
        return self.group.rank

    def getBackendName(self) -> str:
        return "guest"  # by "gloo" or "nccl", C++ would look for an object of its own

    def _set_group_name(self, name: str) -> None:
        self.group_name = name

    def _set_group_desc(self, desc: str) -> None:
        self.group_desc = desc

    def _get_backend(self, device: torch.device) -> "Meeting":
        return self

    def supports_tensor_alloc(self, device: torch.device) -> bool:
        return False

    def shutdown(self) -> None:
        """Nothing is open."""

    # C++ and Python call these; here there is nothing to set.
    abort = _set_sequence_number_for_group = _set_default_timeout = lambda self, *args: None

    # ---- how ----

    def _meet(self, verb: Collective, x: Tensor | None, write: Write, outputs: Any, opts: Any) -> Work:
        """Comes to `verb` with `x`; `write` puts the result into the program's own tensors."""
        self._check_thread(verb.name)
        with torch.no_grad():
            if not getattr(opts, "asyncOp", True):  # the program waits at once
                self._paused(write, self.group._meet(verb, x, needed=x is not None))
                return Work(self._device, None, outputs)
            handle = self.group._meet(verb, x, needed=x is not None, async_op=True)
        return Work(self._device, lambda: self._paused(write, handle.wait()), outputs, handle)

    def _exchange(self, x: Tensor, sent: list[int], expected: list[int], write: Write, outputs: Any, opts: Any) -> Work:
        self._check_thread("all_to_all")
        group, verb = self.group, UnevenAllToAll.of(x, sent, expected)
        joined = group.place.join(group._key, group.ranks, group.rank, verb, x)
        handle = group.place.hand_out(joined, group.ranks, group.rank, verb)
        return Work(self._device, lambda: self._paused(write, handle.wait()), outputs, handle)

    def _paused(self, write: Write, got: Any) -> None:
        """Writing in place costs nothing: the links of real devices do it."""
        clock = getattr(self.group.place, "clock", None)
        with torch.no_grad(), clock.paused() if clock is not None else nullcontext():
            write(got)

    def _copy(self, into: Tensor, got: Tensor) -> None:
        if got.is_meta and not into.is_meta:  # a shape without data
            return
        with torch.no_grad():
            into.detach().copy_(got.view(into.shape))

    def _deal(self, into: Sequence[Tensor], got: Tensor) -> None:
        for x, piece in zip(into, got.split([x.numel() for x in into]), strict=True):
            self._copy(x, piece)

    def _several(self, works: list[Work], outputs: Any) -> Work:
        if len(works) == 1:
            return works[0]
        return Work(self._device, lambda: [work.wait() for work in works], outputs)

    def _check_thread(self, verb: str) -> None:
        """RuntimeError in a thread that the program started itself: it cannot give the turn away. As an error dies with
        its thread, the device remembers it."""
        device = here()
        if device is not None and device is not self._device:
            raise RuntimeError(
                f"rank {device.group.me} called {verb} in a group of rank {self.group.me}: a module keeps it in a "
                "global, and all devices share this module. Make it the guest's own: script(path, root=...) for a "
                "folder, --own NAME for a package that is installed"
            )
        if device is None:
            self._device.trouble = RuntimeError(
                f"rank {self.group.me} called {verb} in a thread of its own ({threading.current_thread().name!r}). "
                "Simulated devices take turns, and such a thread has none: call it in the device's main thread"
            )
            raise self._device.trouble
        if self._device.trouble is not None:
            raise self._device.trouble
