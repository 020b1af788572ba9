"""One thread per device, and only one of them runs at a time.

A device keeps the turn until it waits; then the next ready device goes on, first come, first served. So a run is
deterministic, prints come in a fixed order, and the moment when nobody can move is known for certain: it is a
deadlock, found at once and without any time limit.
"""

import ctypes
import threading
from collections import deque
from collections.abc import Callable

import torch

from lib.devices.errors import Stopped


class Turns:
    """Runs `body(rank)` for each rank in a thread of its own, one at a time, until all have ended.

    `stuck()` is asked for the exception to raise when every device that has not ended waits.
    """

    def __init__(self, size: int, body: Callable[[int], None], stuck: Callable[[], BaseException]):
        self._body, self._stuck = body, stuck
        self._threads = [
            threading.Thread(target=self._live, args=(rank,), name=f"device {rank}", daemon=True) for rank in range(size)
        ]
        self._may_run = [threading.Lock() for _ in range(size)]  # a gate per device; the turn opens it
        for gate in self._may_run[1:]:  # rank 0 has the first turn
            gate.acquire()
        self._all_ended = threading.Lock()
        self._all_ended.acquire()
        self._ready = deque(range(1, size))
        self._waiting: set[int] = set()
        self._unfinished = size
        # PyTorch has one random stream per process. Here each device has its own, laid aside while others run.
        self.streams = [torch.default_generator.get_state()] * size
        self.running: int | None = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Blocks until every device has ended. Re-raises what made the run fail; leaves no thread behind."""
        try:
            for thread in reversed(self._threads):  # rank 0 last: it begins at once
                thread.start()
            self._all_ended.acquire()
        except BaseException as interrupt:  # Ctrl-C, or the notebook's stop button
            self.failure = interrupt
            for thread in reversed(self._threads):
                if not thread.is_alive() and thread.ident is None:
                    thread.start()  # even a device that never began must pass the turn on
            while not self._all_ended.acquire(timeout=0.05):
                self._interrupt_running_device()
        for thread in self._threads:
            thread.join()
        failure, self.failure = self.failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # this frame is in its traceback: no cycle may keep the devices' tensors alive

    def wait(self, rank: int) -> None:
        """Called by device `rank` when it has the turn: gives it away until another device calls `ready(rank)`."""
        self.stop_if_failed()
        self._waiting.add(rank)
        self.streams[rank] = torch.default_generator.get_state()
        self._pass_turn()
        self._may_run[rank].acquire()
        self.stop_if_failed()

    def ready(self, rank: int) -> None:
        """Device `rank`, which waits, may go on when its turn comes."""
        self._waiting.remove(rank)
        self._ready.append(rank)

    def stop_if_failed(self) -> None:
        """Unwinds the calling device when the run has failed elsewhere or was interrupted."""
        if self.failure is not None:
            raise Stopped

    def frame_of(self, rank: int, frames: dict[int, object]):
        """The innermost frame of device `rank` among `sys._current_frames()`, or None when it has ended."""
        return frames.get(self._threads[rank].ident)

    def is_current_thread(self, rank: int) -> bool:
        """Whether the caller is the thread of device `rank`."""
        return threading.current_thread() is self._threads[rank]

    def _live(self, rank: int) -> None:
        self._may_run[rank].acquire()
        try:
            self.stop_if_failed()
            self._body(rank)
        except BaseException as error:
            if self.failure is None:  # else this device was only being unwound: the first error counts
                error.add_note(f"raised on rank {rank} of {len(self._threads)}")
                self.failure = error
        self.streams[rank] = torch.default_generator.get_state()
        self.running = None  # from here on, an interrupt must leave this thread alone
        self._unfinished -= 1
        self._pass_turn()

    def _pass_turn(self) -> None:
        if not self._ready and self._waiting and self.failure is None:
            try:
                self.failure = self._stuck()
            except Exception as error:  # whatever happens while the error is worded, the run must end
                self.failure = error
        if self.failure is not None:  # wake all who wait: each raises Stopped and unwinds, still one at a time
            self._ready.extend(sorted(self._waiting))
            self._waiting.clear()
        if self._ready:
            self.running = self._ready.popleft()
            torch.default_generator.set_state(self.streams[self.running])
            self._may_run[self.running].release()
        elif not self._unfinished:
            self._all_ended.release()

    def _interrupt_running_device(self) -> None:
        # The devices that wait are unwound when they get the turn; the one that computes is told asynchronously.
        rank = self.running
        if rank is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._threads[rank].ident), ctypes.py_object(Stopped)
            )
