"""What a call of `torch.distributed` returns with `async_op=True`: a `Work` that writes the result when it is waited
for."""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from lib.devices.engine.wording import where
from lib.devices.handle import Handle
from lib.guest import private
from lib.guest.own import Device


class Work(dist.Work):
    """`finish` waits for the others and writes into the program's own tensors, `outputs`; None: all is done.

    With a `handle` of the engine, the device remembers what was started until it is waited for."""

    def __init__(self, device: Device, finish: Callable[[], Any] | None, outputs: Any, handle: Handle | None = None):
        super().__init__()
        self._device, self._finish, self._outputs, self._handle = device, finish, outputs, handle
        if handle is not None:
            device.open_works[handle] = where(sys._getframe())

    def wait(self, timeout: Any = None) -> bool:
        """Waits, once; a time limit is not needed, for who would wait for ever is found at once."""
        finish, self._finish = self._finish, None
        if finish is not None:
            self._device.open_works.pop(self._handle, None)
            finish()
        return True

    # Asking whether it is done counts as waiting: a program that polls must get on.
    is_completed = is_success = synchronize = block_current_stream = wait

    def result(self) -> Any:
        """What was written into."""
        self.wait()
        return self._outputs

    def exception(self) -> None:
        """None: what goes wrong is raised where it goes wrong."""

    def get_future(self) -> torch.futures.Future:
        """A future that is done. C++ waits for futures where no turn can be given away (DDP does, in its backward): so
        the data must be there now."""
        if self._finish is not None:
            _wait_behind_the_backward(self)
        future: torch.futures.Future = torch.futures.Future()
        future.set_result(self._outputs)
        return future


def _wait_behind_the_backward(work: Work) -> None:
    """Fetches the data now. But on the clock, the device goes on with its backward, and waits at the end of it."""
    group = work._device.group
    clock, me = getattr(group.place, "clock", None), group.me
    if clock is None or not private.in_backward():
        work.wait()
        return
    now = clock.now[me]
    events = clock.trace.events
    known = len(events)
    work.wait()
    end, clock.now[me] = clock.now[me], now
    events[known:] = [event for event in events[known:] if (event.rank, event.kind) != (me, "waiting")]
    private.after_backward(lambda: clock.wait_until(me, end, "all_reduce"))
