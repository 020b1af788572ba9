"""The process groups of a run: `dist.init_process_group` and `dist.new_group` make groups of simulated devices."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.distributed as dist
import torch.distributed.nn.functional  # noqa: F401  looks up the default group at import: none may be there yet

from lib.guest import private
from lib.guest.own import Device, here
from lib.guest.process_group import GuestGroup
from lib.guest.store import Shelf, Store


@contextmanager
def patches(size: int) -> Iterator[None]:
    """Around a run on `size` devices."""
    meet = partial(_meet, Shelf(), size)
    with private.names_by_thread(), private.quiet_errors(), private.groups_made_by(_make, meet):
        yield


def _meet(shelf: Shelf, size: int, method: str, rank: int, world_size: int, **options: Any) -> Iterator[tuple]:
    """Whom a process meets: all devices of the run. ValueError for a rank or a size that is not this device's."""
    _check(rank, world_size, size)
    yield Store(shelf), _device().group.rank, size


def _make(size: int, rank: int, ranks: list[int], backend: Any, store: dist.Store, name: str, **options: Any) -> tuple:
    """The group of `ranks`, of all when there are none; NON_GROUP_MEMBER on the devices that are not in it."""
    device = _device()
    if not ranks:
        _check(rank, size, device.group.size)
    elif device.group.rank not in ranks:
        return dist.GroupMember.NON_GROUP_MEMBER, None
    backend = str(backend or "gloo")
    group = GuestGroup(device, device.group.split([list(ranks)]) if ranks else device.group)
    group._set_group_name(name)
    group._set_group_desc(options.get("group_desc") or "undefined")
    own_store = dist.PrefixStore(f"{name}/", store)
    private.register(group, name, backend, own_store, options.get("pg_tag") or None)
    return group, own_store


def _device() -> Device:
    device = here()
    if device is None:
        error = RuntimeError(
            "a process group was made in a thread that the program started itself: make it in the device's main thread"
        )
        if isinstance(private.world().default_pg, GuestGroup):
            private.world().default_pg.trouble(error)  # an error dies with its thread
        raise error
    return device


def _check(rank: int, world_size: int, size: int) -> None:
    mine = _device().group.rank
    if world_size not in (-1, size):
        raise ValueError(
            f"rank {mine}: init_process_group was told world_size={world_size}, but {size} devices are simulated"
        )
    if rank not in (-1, mine):
        raise ValueError(
            f"rank {mine}: init_process_group was told rank={rank}. Each tells its own, that of the variable RANK"
        )


def end(device: Device) -> None:
    """The program of `device` has ended well. RuntimeError for what went wrong in a thread of its own; a warning for a
    call that nobody has waited for: its result was never written."""
    if device.trouble is not None:
        raise device.trouble
    for handle, line in device.open_works.items():
        device.group.place.forget(handle)
        if line is not None:  # DDP tells those that have joined to go on, and needs no answer
            warnings.warn(
                f"rank {device.group.me} started {handle} in {line}, and never waited for it: when its result is there "
                "is left to chance. Call wait() on what async_op=True returns",
                stacklevel=2,
            )


def close(device: Device) -> None:
    """`device` ends, well or not."""
    device.open_works.clear()
    private.forget_names_of_this_thread()
