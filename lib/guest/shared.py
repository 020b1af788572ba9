"""Locks, events, barriers and queues of `multiprocessing`, between devices: who waits at one gives the turn away.

Under all of them but the queues lies one semaphore. A wait that lasts for a minute is a deadlock: unlike a collective,
nobody can tell who would end it.
"""

import multiprocessing.queues
import multiprocessing.synchronize
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lib.devices.errors import DeadlockError
from lib.guest import own, private

PATIENCE = 60.0  # seconds
_sleep, _now = time.sleep, time.monotonic  # those of the machine: programs may have a virtual clock


def _try_again(attempt: Callable[[], Any], what: str, timeout: float | None) -> Any:
    """What `attempt` gives, as soon as that is not None, letting other devices go on; None after `timeout` seconds."""
    begin, group = _now(), own.here().group
    while (got := attempt()) is None:
        waited = _now() - begin
        if timeout is not None and waited >= timeout:
            return None
        if waited > PATIENCE:
            raise DeadlockError(
                f"rank {group.me} waits at {what} for {PATIENCE:.0f} s, and no device does what would end it"
            )
        group.place.step_back(group.me, what)
        _sleep(0.0005)  # queues are filled by threads of their own
    return got


@contextmanager
def simulated_waiting(run_what_was_started: Callable[[], None]) -> Iterator[None]:
    """While entered. Who waits first runs the processes that it has started: they may be what it waits for."""
    queues, semaphore = multiprocessing.queues, multiprocessing.synchronize.SemLock
    get, get_simply, make = queues.Queue.get, queues.SimpleQueue.get, semaphore._make_methods

    def queue_get(self: Any, block: bool = True, timeout: float | None = None) -> Any:
        run_what_was_started()
        if not block or own.here() is None:
            return get(self, block, timeout)
        found = _try_again(lambda: _soon(lambda: get(self, True, 0.01)), "Queue.get()", timeout)
        if found is None:
            raise queue.Empty
        return found[0]

    def simple_queue_get(self: Any) -> Any:
        run_what_was_started()
        if own.here() is not None:
            _try_again(lambda: None if self.empty() else True, "SimpleQueue.get()", None)
        return get_simply(self)

    def make_methods(self: Any) -> None:
        make(self)
        acquire = self.acquire

        def patient(block: bool = True, timeout: float | None = None) -> bool:
            if not block or own.here() is None:
                return acquire(block, timeout)
            if acquire(False):
                return True
            run_what_was_started()
            return bool(_try_again(lambda: acquire(False) or None, "a lock of multiprocessing", timeout))

        self.acquire = patient

    with (
        private.patched(queues.Queue, get=queue_get),
        private.patched(queues.SimpleQueue, get=simple_queue_get),
        private.patched(semaphore, _make_methods=make_methods, __enter__=lambda self: self.acquire()),
    ):
        yield


def _soon(get: Callable[[], Any]) -> tuple[Any] | None:
    try:
        return (get(),)
    except queue.Empty:
        return None
