"""Locks, events, barriers and queues of `multiprocessing`, between devices: who waits at one gives the turn away.

Under all of them but the queues lies one semaphore.
"""

import multiprocessing.queues
import multiprocessing.synchronize
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lib.guest import own, private
from lib.guest.asking import Asking


@contextmanager
def simulated_waiting(run_what_was_started: Callable[[], None]) -> Iterator[None]:
    """While entered. Who waits first runs the processes that it has started: they may be what it waits for."""
    asking = Asking()
    queues, semaphore = multiprocessing.queues, multiprocessing.synchronize.SemLock
    get, get_simply, make = queues.Queue.get, queues.SimpleQueue.get, semaphore._make_methods

    def queue_get(self: Any, block: bool = True, timeout: float | None = None) -> Any:
        run_what_was_started()
        if not block or own.here() is None:
            return get(self, block, timeout)
        found = asking.until(lambda: _soon(lambda: get(self, True, 0.01)), "Queue.get()", timeout)
        if found is None:
            raise queue.Empty
        return found[0]

    def simple_queue_get(self: Any) -> Any:
        run_what_was_started()
        if own.here() is not None:
            asking.until(lambda: None if self.empty() else True, "SimpleQueue.get()")
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
            return bool(asking.until(lambda: acquire(False) or None, "a lock of multiprocessing", timeout))

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
