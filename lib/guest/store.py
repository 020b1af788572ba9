"""Stores of torch.distributed on simulated devices: who asks for a key that nobody has set yet gives the turn away.

The stores of C++ would wait with the turn in their hands, and so for ever. `simulated_stores` puts these there.
"""

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar

import torch.distributed as dist

from lib.guest import own, private


@dataclass
class Shelf:
    """What lies in one store, and who waits for something to lie there. Seen by all devices of a run."""

    values: dict[str, bytes] = field(default_factory=dict)
    queues: dict[str, deque[bytes]] = field(default_factory=lambda: defaultdict(deque))
    waiting: list[int] = field(default_factory=list)
    members: int = 0  # devices that have opened it
    served: bool = False  # whether one of them is the server
    stores: list["Store"] = field(default_factory=list)  # C++ loses the half of a store that is Python, unless kept


class Store(dist.Store):
    """A store of one device. Keys and values as in torch.distributed: text or bytes come in, bytes go out."""

    def __init__(self, shelf: Shelf):
        super().__init__()
        self._shelf = shelf
        shelf.stores.append(self)

    def set(self, key: str, value: str | bytes) -> None:
        """Puts a value there."""
        self._put(key, _bytes(value))

    def get(self, key: str) -> bytes:
        """The value; waits until there is one."""
        self._until(lambda: key in self._shelf.values, f"store.get({key!r})")
        return self._shelf.values[key]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Returns when all keys have values. A time limit is not needed: who would wait for ever is found at once."""
        self._until(lambda: self._have(keys), f"store.wait({list(keys)})")

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys have values. After a no, the others go first: programs ask again and again."""
        return self._have(keys) or self._step_back("store.check()")

    def add(self, key: str, amount: int) -> int:
        """Counts on; returns where it stands."""
        number = int(self._shelf.values.get(key, b"0")) + amount
        self._put(key, str(number).encode())
        if amount == 0:
            self._step_back("store.add(key, 0)")  # it only asks
        return int(self._shelf.values[key])

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Puts `desired` there when `expected` is what lies there, or nothing is expected; returns what lies there."""
        if self._shelf.values.get(key, b"") == _bytes(expected):
            self._put(key, _bytes(desired))
        return self._shelf.values.get(key, _bytes(expected))

    def append(self, key: str, value: str | bytes) -> None:
        """Adds to the end of the value."""
        self._put(key, self._shelf.values.get(key, b"") + _bytes(value))

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """`get` of each."""
        return [self.get(key) for key in keys]

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """`set` of each."""
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def delete_key(self, key: str) -> bool:
        """Whether there was one."""
        return self._shelf.values.pop(key, None) is not None

    deleteKey = delete_key  # so C++ calls it, where a PrefixStore lies over this one

    def num_keys(self) -> int:
        """How many have values."""
        return len(self._shelf.values)

    def list_keys(self) -> list[str]:
        """Those that have values."""
        return list(self._shelf.values)

    def queue_push(self, key: str, value: str | bytes) -> None:
        """Puts a value at the end of a queue. Where a PrefixStore lies over this one, C++ knows no queues."""
        self._shelf.queues[key].append(_bytes(value))
        self._tell()

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        """Takes the first of a queue; waits until there is one, or raises QueueEmptyError."""
        queue = self._shelf.queues[key]
        if not queue and not block:
            self._step_back("store.queue_pop(block=False)")
            raise dist.QueueEmptyError("queue is empty")
        self._until(lambda: queue, f"store.queue_pop({key!r})")
        return queue.popleft()

    def queue_len(self, key: str) -> int:
        """How many are in a queue."""
        return len(self._shelf.queues[key]) or int(self._step_back("store.queue_len()"))

    def has_extended_api(self) -> bool:
        """It has append, multi_get, multi_set and the queues."""
        return True

    def clone(self) -> "Store":
        """The same store once more."""
        return Store(self._shelf)

    def _have(self, keys: Sequence[str]) -> bool:
        return all(key in self._shelf.values or self._shelf.queues[key] for key in keys)

    def _put(self, key: str, value: bytes) -> None:
        self._shelf.values[key] = value
        self._tell()

    def _tell(self) -> None:
        waiting, self._shelf.waiting = self._shelf.waiting, []
        for me in waiting:
            own.here().group.place.go_on(me)

    def _until(self, there: Callable[[], bool], call: str) -> None:
        while not there():
            group = own.here().group
            self._shelf.waiting.append(group.me)
            group.place.stand_still(group.me, call, group.ranks)

    def _step_back(self, call: str) -> bool:
        group = own.here().group
        group.place.step_back(group.me, call)
        return False


class TCPStore(Store):
    """As dist.TCPStore: one server at a host and port, which may wait until all of its `world_size` clients are there;
    clients wait for the server. The address stands for itself: nothing listens there."""

    shelves: ClassVar[dict[Any, Shelf]]
    libuvBackend = False

    def __init__(self, host_name: str, port: int, world_size: int | None = None, is_master: bool = False,
                 timeout: timedelta | None = None, wait_for_workers: bool = True, **of_the_network: Any):  # fmt: skip
        shelf = self.shelves["localhost" if host_name == "127.0.0.1" else host_name, port]
        super().__init__(shelf)
        self.host, self.port = host_name, port
        if is_master and shelf.served and port:
            raise dist.DistNetworkError(
                f"TCPStore: two devices are the server of {host_name}:{port}. Say is_master=(rank == 0)"
            )
        shelf.served, shelf.members = shelf.served or is_master, shelf.members + 1
        self._tell()
        self._until(
            lambda: shelf.served or _is_torchruns(host_name, port), f"the server of TCPStore({host_name!r}, {port})"
        )
        if is_master and wait_for_workers and world_size:
            self._until(lambda: shelf.members >= world_size, f"{world_size} clients of TCPStore({host_name!r}, {port})")


class FileStore(Store):
    """As dist.FileStore. Nothing is written into the file."""

    shelves: ClassVar[dict[Any, Shelf]]

    def __init__(self, file_name: str, world_size: int = -1):
        super().__init__(self.shelves[file_name])
        self.path = file_name


@contextmanager
def simulated_stores(size: int) -> Iterator[None]:
    """Around a run: `dist.TCPStore` and `dist.FileStore` are simulated."""
    shelves: dict[Any, Shelf] = defaultdict(Shelf)
    kinds = {kind.__name__: type(kind.__name__, (kind,), {"shelves": shelves}) for kind in (TCPStore, FileStore)}
    # What a program calls as dist.rendezvous has names of its own for them.
    with private.patched(dist, **kinds), private.patched(private.rendezvous, **kinds):
        yield


def _is_torchruns(host: str, port: int) -> bool:
    """Whether torchrun itself is the server there, so that no device has to be."""
    address = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and (host, str(port)) == address


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
