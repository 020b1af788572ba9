"""The half of a process group that knows how: who it is, how a device meets the others, how results are written."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lib.devices.collectives import Collective, can_combine
from lib.devices.engine.wording import short_ranks
from lib.devices.group import Group
from lib.guest.bare import bare, is_bare, strided
from lib.guest.messages import Messages
from lib.guest.own import Device, here
from lib.guest.private_tensors import mode_stack, without_modes
from lib.guest.uneven import UnevenAllToAll
from lib.guest.work import Work, Works

Write = Callable[[Tensor | None], None]


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
        self._where = group.key, group.ranks, group.rank  # how the meeting place knows us
        self._started: dict[Work, None] = {}  # collectives that are not done yet, in the order of their calls

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

    def _meet(self, verb: Collective, x: Tensor | None, write: Write, outputs: Any, opts: Any) -> Work | None:
        """Comes to `verb` with `x`; `write` puts the result into the program's own tensors. None when it is done."""
        self._check_thread(verb.name)
        self._check_op(verb, x)
        place, (key, ranks, rank) = self.group.place, self._where
        joined = place.join(key, ranks, rank, verb, x)
        if getattr(opts, "asyncOp", True):
            handle = place.hand_out(joined, ranks, rank, verb)
            return Work(self._device, lambda: self._unseen(write, handle.wait()), outputs, handle, self._started)
        self._unseen(write, place.collect(joined, ranks, rank, verb))
        for work in list(self._started):  # as on the stream of a GPU: what was started before is done before
            work.finish()
        return None

    def _exchange(self, x: Tensor, sent: list[int], expected: list[int], write: Write, outputs: Any, opts: Any) -> Any:
        return self._meet(UnevenAllToAll.of(x, sent, expected), x, write, outputs, opts)

    def _unseen(self, write: Write, got: Tensor | None) -> None:
        """Writing in place costs nothing, the links of real devices do it: no clock looks on, nor any other mode."""
        if mode_stack():
            with without_modes():
                write(got)
        else:
            write(got)

    def _copy(self, into: Tensor, got: Tensor) -> None:
        if got.shape != into.shape:
            if got.numel() != into.numel():
                raise ValueError(
                    f"rank {self.group.me} of group {short_ranks(self.group.ranks)}: {got.numel()} elements come, and "
                    f"the tensor that they go into has {into.numel()}, shape {tuple(into.shape)}. Make it as long as "
                    "what comes"
                )
            got = got.view(into.shape)
        if not (is_bare(into) or got.is_meta and not into.is_meta):  # else there is a shape, and no data
            into.detach().copy_(got)

    def _deal(self, into: Sequence[Tensor], got: Tensor) -> None:
        lengths = [x.numel() for x in into]
        if sum(lengths) != got.numel():
            raise ValueError(
                f"rank {self.group.me} of group {short_ranks(self.group.ranks)}: {got.numel()} elements come, and the "
                f"tensors that they go into have {' + '.join(map(str, lengths))}. Make them as large as what comes"
            )
        for x, piece in zip(into, got.split(lengths), strict=True):
            self._copy(x, piece)

    def _several(self, works: list[Work | None], outputs: Any) -> Work | Works | None:
        return works[0] if len(works) == 1 else None if None in works else Works(works, outputs)

    def _dense(self, x: Tensor) -> Tensor:
        """`x`, to be written in place. ValueError when its elements lie with gaps between them: real processes would
        send the gaps, without a word."""
        if not strided(x).is_contiguous() and not torch.ops.aten.is_non_overlapping_and_dense(x):
            raise ValueError(
                f"rank {self.group.me}: a tensor of shape {tuple(x.shape)} and strides {x.stride()} lies with gaps in "
                "memory, which real processes send too. Pass y = x.contiguous(), and copy it back: call x.copy_(y)"
            )
        return bare(x).detach()

    def _check_contiguous(self, verb: str, *tensors: Tensor) -> None:
        """ValueError for what neither gloo nor NCCL takes, though it could be sent here."""
        for x in tensors:
            if not (strided(x).is_contiguous() or x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
                raise ValueError(
                    f"rank {self.group.me}: {verb} of a tensor of shape {tuple(x.shape)} and strides {x.stride()}, and "
                    "real processes refuse what is not contiguous. Send x.contiguous(), or receive into a new tensor"
                )

    def _check_op(self, verb: Collective, x: Tensor | None) -> None:
        if x is not None and getattr(verb, "op", "sum") != "sum" and not can_combine(x.dtype, verb.op):
            raise TypeError(
                f"{verb} on rank {self.group.me}: {x.dtype} cannot be combined by {verb.op!r}. Convert the tensor first"
            )

    def trouble(self, error: Exception) -> None:
        """The device raises it as soon as it calls us, or ends."""
        self._device.trouble = error

    def _check_thread(self, verb: str) -> None:
        """RuntimeError in a thread that the program started itself: it cannot give the turn away. As an error dies with
        its thread, the device remembers it."""
        device = here()
        if device is None:
            self.trouble(RuntimeError(
                f"rank {self.group.me} called {verb} in a thread of its own ({threading.current_thread().name!r}). "
                "Simulated devices take turns, and such a thread has none: call it in the device's main thread"
            ))  # fmt: skip
            raise self._device.trouble
        if device is not self._device:
            raise RuntimeError(
                f"rank {device.group.me} called {verb} in a group of rank {self.group.me}: a module keeps it in a "
                "global, and all devices share this module. Make it the guest's own: script(path, root=...) for a "
                "folder, --own NAME for a package that is installed"
            )
        if device.trouble is not None:
            raise device.trouble
