"""Messages of `torch.distributed`: sends that are let go, receives that are posted and filled later."""

from collections.abc import Callable

from torch import Tensor

from lib.devices.group import Group
from lib.guest.bare import bare
from lib.guest.own import Device
from lib.guest.work import Work


class Messages:
    """Those of one group. A receive gets the message that comes to its place in the line of receives from one source
    and under one tag, whichever is waited for first: the engine's own rule."""

    def __init__(self, device: Device, group: Group, write: Callable[[Tensor, Tensor], None]):
        self._device, self._group, self._write = device, group, write

    def send(self, x: Tensor, dst: int, tag: int) -> Work:
        """Goes on at once. With rendezvous, waiting for the work waits until the receiver takes the message."""
        group = self._group
        handle = group.place.offer(group._key, group.ranks, group.rank, dst, tag, bare(x).detach())
        return Work(self._device, handle and handle.wait, [x], handle)

    def recv(self, x: Tensor, src: int, tag: int) -> Work:
        """Takes the place in the line now, and fills `x` when it is waited for."""
        group = self._group
        handle = group.place.expect(group._key, group.ranks, group.rank, src, tag)
        return Work(self._device, lambda: self._write(x, handle.wait()), [x], handle)
