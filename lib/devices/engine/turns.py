"""One thread per device, and only one of them runs at a time.

A device keeps the turn until it waits; then the next ready device goes on, first come, first served. So a run is
deterministic, prints come in a fixed order, and the moment when nobody can move is known for certain: it is a
deadlock, found at once and without any time limit.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident

from lib.devices.engine.core import allowed_here, call_here, let_go
from lib.devices.engine.own import Owned, Owners
from lib.devices.engine.raise_in import raise_in
from lib.devices.errors import Stopped


class Turns:
    """Runs `body(rank)` for each rank in a thread of its own, one at a time, until all have ended.

    `stuck()` is asked for the exception to raise when every device that has not ended waits; or it makes one ready.
    `watch(rank)` is called whenever device `rank` gives the turn away.
    """

    def __init__(
        self,
        size: int,
        body: Callable[[int], None],
        stuck: Callable[[], BaseException | None],
        watch: Callable[[int], None] | None = None,
    ):
        self._body, self._stuck, self._watch = body, stuck, watch
        self._threads = [
            threading.Thread(target=self._live, args=(rank,), name=f"device {rank}", daemon=True)
            for rank in range(size)
        ]
        self._may_run = [threading.Lock() for _ in range(size)]  # a gate per device; the turn opens it
        for gate in self._may_run:
            gate.acquire()
        self._all_ended = threading.Event()
        self._all_cores = allowed_here()
        self._cores: set[int] | None = None  # those of the device that is being woken
        self._ready = deque(range(1, size))
        self._waiting: set[int] = set()
        self.idents = [0] * size  # of the threads, as they begin
        self.owners = Owners([Owned(size)])
        self._interruptible: int | None = None  # the device that is in its program now
        self._interrupting = threading.Lock()  # guards the field above
        self.failure: BaseException | None = None  # of any device, or an interrupt: all others raise Stopped

    def run(self) -> None:
        """Blocks until every device has ended. Re-raises what made the run fail; leaves no thread behind."""
        try:
            self.owners.take_up(0)
            self._threads[0].start()  # the others are started by those before them, when their first turn comes
            # Not one long wait: the system may hand an interrupt to a device's thread, and that does not end a wait.
            while not self._all_ended.wait(0.2):
                continue
        except BaseException as interrupt:  # Ctrl-C, or the notebook's stop button
            self.failure = interrupt
            self._stop_all()
        for thread in (thread for thread in self._threads if thread.ident):  # the others never began
            thread.join()
        failure, self.failure = self.failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # this frame is in its traceback: no cycle may keep the devices' tensors alive

    def wait(self, rank: int) -> None:
        """Called by device `rank` when it has the turn: gives it away until another device calls `ready(rank)`."""
        self._give_away(rank, self._waiting.add)

    def step_back(self, rank: int) -> None:
        """Called by device `rank` when it has the turn: lets the others who are ready go first."""
        self._give_away(rank, self._ready.append)

    def ready(self, rank: int) -> None:
        """Device `rank`, which waits, may go on when its turn comes."""
        self._waiting.remove(rank)
        self._ready.append(rank)

    @property
    def in_line(self) -> tuple[int, ...]:
        """The devices that may go on, the next one first."""
        return tuple(self._ready)

    def frame_of(self, rank: int, frames: dict[int, object]):
        """The innermost frame of device `rank` among `sys._current_frames()`, or None when it has ended."""
        return frames.get(self._threads[rank].ident)

    def is_a_device(self, thread: threading.Thread | None = None) -> bool:
        """Whether `thread`, by default that of the caller, is the thread of one of the devices."""
        return (thread or threading.current_thread()) in self._threads

    def _live(self, rank: int) -> None:
        self.idents[rank] = get_ident()
        let_go(self._all_cores)  # else it would keep to those that the device which started it has chosen
        if hasattr(os, "SCHED_BATCH"):  # Linux
            # Else a woken device preempts its waker, which still holds Python's lock, and at once sleeps again.
            with suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # 0: this thread alone
        try:
            try:
                self._enter_program(rank)
                self._body(rank)
            except BaseException as error:
                if self.failure is None:  # else this device was only being unwound: the first error counts
                    self.failure = error
            self._leave_program(rank)
        except Stopped:  # an interrupt that came on the way out
            self._leave_program(rank)
        self._lay_aside(rank)
        self._pass_turn()

    def _give_away(self, rank: int, stand_in_line: Callable[[int], None]) -> None:
        self._leave_program(rank)
        if self.failure is not None:
            raise Stopped
        stand_in_line(rank)
        self._lay_aside(rank)
        self._pass_turn()
        self._may_run[rank].acquire()
        let_go(self._cores)
        self._enter_program(rank)

    def _lay_aside(self, rank: int) -> None:
        self._swap(self.owners.lay_aside, rank)
        if self._watch is not None:
            self._watch(rank)

    def _swap(self, own: Callable[[int], None], rank: int) -> None:
        try:
            own(rank)
        except Exception as error:  # a program may spoil what it does not own; but the turn must go on, to end the run
            self.failure = self.failure or error

    def _enter_program(self, rank: int) -> None:
        with self._interrupting:
            self._interruptible = rank
        if self.failure is not None:
            raise Stopped

    def _leave_program(self, rank: int) -> None:
        # An exception that came in the middle of passing the turn would lose the turn, and the run would hang.
        while self._interruptible == rank:
            try:
                with self._interrupting:
                    self._interruptible = None
                    if self.failure is not None:
                        raise_in(self._threads[rank], Stopped)  # at once, here: what was sent may not arrive later
            except Stopped:
                continue

    def _pass_turn(self) -> None:
        if not self._ready and self._waiting and self.failure is None:
            try:
                self.failure = self._stuck() or self.failure  # of an interrupt that has come meanwhile
            except Exception as error:  # whatever happens while the error is worded, the run must end
                self.failure = error
        if self.failure is not None:  # wake all who wait: each raises Stopped and unwinds, still one at a time
            begun = [rank for rank in self._ready if self._threads[rank].ident]  # the others need not begin any more
            self._ready = deque([*begun, *sorted(self._waiting)])
            self._waiting.clear()
        if self._ready:
            rank = self._ready.popleft()
            self._swap(self.owners.take_up, rank)
            if self.idents[rank]:
                self._cores = call_here(self._threads[rank].native_id)
                self._may_run[rank].release()
            else:
                self._begin(rank)
        else:  # nobody waits either: `stuck()` or the failure would have made them ready
            self._all_ended.set()

    def _begin(self, rank: int) -> None:
        try:
            self._threads[rank].start()
        except RuntimeError as error:  # the system has no thread left: the run must end all the same
            self.failure = error
            self._pass_turn()

    def _stop_all(self) -> None:
        patience = 0.05  # seconds; more each time, so that a device may clean up in peace
        try:
            while self._threads[0].ident and not self._all_ended.wait(patience):
                self._interrupt_running_device()
                patience = min(2 * patience, 1.0)
        except KeyboardInterrupt:  # pressed again: all are being stopped already
            self._stop_all()

    def _interrupt_running_device(self) -> None:
        # The devices that wait are unwound when they get the turn; the one that computes is told asynchronously.
        with self._interrupting:
            if self._interruptible is not None:
                raise_in(self._threads[self._interruptible], Stopped)
