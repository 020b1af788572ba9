"""Messages of `torch.distributed`: sends that are let go, receives that are posted and filled later."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lib.devices.errors import MismatchError
from lib.devices.group import Group
from lib.guest.bare import bare
from lib.guest.own import Device
from lib.guest.work import Work, Works


class Messages:
    """Those of one group. A receive gets the message that comes to its place in the line of receives from one source
    and under one tag, whichever is waited for first: the engine's own rule."""

    def __init__(self, device: Device, group: Group, write: Callable[[Tensor, Tensor], None]):
        self._device, self._group, self._write = device, group, write

    def send(self, x: Tensor, dst: int, tag: int) -> Works:
        """Goes on at once. With rendezvous, waiting for the work waits until the receiver takes the message."""
        group = self._group
        handle = group.place.offer(group.key, group.ranks, group.rank, dst, tag, bare(x).detach())
        return Works([], [x]) if handle is None else Work(self._device, handle.wait, [x], handle)

    def recv(self, x: Tensor, src: int, tag: int) -> Works:
        """Takes the place in the line now, and fills `x` when it is waited for."""
        group = self._group
        handle = group.place.expect(group.key, group.ranks, group.rank, src, tag)
        return Received(self._device, lambda: self._fill(x, handle.wait(), src, tag), [x], handle, src)

    def _fill(self, x: Tensor, got: Tensor, src: int, tag: int) -> None:
        if got.dtype != x.dtype or got.numel() != x.numel():
            raise MismatchError(
                f"rank {self._group.me} receives from rank {self._group.ranks[src]} (tag={tag}) into a tensor of "
                f"{_kind(x)}, but what was sent is of {_kind(got)}. Let both be alike: the bytes are taken as they come"
            )
        self._write(x, got)


class Received(Work):
    """A receive, which knows from whom."""

    def __init__(self, device: Device, finish_it: Callable[[], Any], outputs: Any, handle: Any, src: int):
        super().__init__(device, finish_it, outputs, handle)
        self._src = src

    def _source_rank(self) -> int:
        return self._src

    source_rank = _source_rank


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
