"""What a call of `torch.distributed` returns with `async_op=True`: a `Work` that writes the result when it is waited
for."""

import sys
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch
import torch.distributed as dist

from lib.devices.engine.wording import is_the_readers, where
from lib.devices.handle import Handle
from lib.guest import private
from lib.guest.callers import is_pytorchs
from lib.guest.own import Device


class Works(dist.Work):
    """Several that are waited for together; none: all is done."""

    def __init__(self, works: list["Works"], outputs: Any):
        super().__init__()
        self._works, self._outputs = works, outputs

    def wait(self, timeout: Any = None) -> bool:
        """Waits, once; a time limit is not needed, for who would wait for ever is found at once."""
        return all(work.wait() for work in self._works)

    def is_completed(self) -> bool:
        """Asking counts as waiting: a program that polls must get on."""
        return self.wait()

    is_success = synchronize = block_current_stream = is_completed

    def result(self) -> Any:
        """The tensors that were written into, a list."""
        self.wait()
        return self._outputs

    def exception(self) -> None:
        """None: what goes wrong is raised where it goes wrong."""

    def get_future(self) -> torch.futures.Future:
        """A future of the outputs, which waits when the guest asks it. PyTorch's own code, C++ above all, waits for
        futures where no turn can be given away (as DDP does in its backward): for it, the data must be there now."""
        if is_the_readers(sys._getframe(1).f_code.co_filename) and not private.in_backward():
            return Later(self)
        self._fetch()
        future: torch.futures.Future = torch.futures.Future()
        future.set_result(self._outputs)
        return future

    def _fetch(self) -> None:
        self.wait()


class Work(Works):
    """`finish_it` waits for the others and writes into the program's own tensors, `outputs`. The device remembers the
    engine's `handle`, with the line that started it, until it is waited for.

    `line` of collectives of one group: who waits for a late one finds the early ones done, as on the stream of a GPU,
    even those that nobody waits for.
    """

    def __init__(
        self,
        device: Device,
        finish_it: Callable[[], Any],
        outputs: Any,
        handle: Handle,
        line: dict["Work", None] | None = None,
    ):
        super().__init__([], outputs)
        self._device, self._finish, self._handle, self._line = device, finish_it, handle, {} if line is None else line
        self._line[self] = None
        device.open_works[handle] = None if is_pytorchs(sys._getframe()) else where(sys._getframe())

    def wait(self, timeout: Any = None) -> bool:
        """Waits for this one, and then has those that were started before it done too."""
        self._device.open_works.pop(self._handle, None)
        if self._finish is not None:
            early = list(takewhile(lambda work: work is not self, self._line))
            self.finish()
            for work in early:
                work.finish()
        return True

    def finish(self) -> None:
        """Fetches the result and writes it, once."""
        finish, self._finish = self._finish, None
        if finish is not None:
            del self._line[self]
            finish()

    def _fetch(self) -> None:
        if self._finish is not None:
            _wait_behind_the_backward(self)


class Later(torch.futures.Future):
    """A future that waits for its work when somebody asks for the value."""

    def __init__(self, work: Works):
        super().__init__()
        self._work: Works | None = work

    def _fetch(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            self.set_result(work.result())

    def wait(self) -> Any:
        """The value."""
        self._fetch()
        return super().wait()

    def value(self) -> Any:
        """The value."""
        self._fetch()
        return super().value()

    def done(self) -> bool:
        """True; asking counts as waiting."""
        self._fetch()
        return True

    def then(self, callback: Callable) -> torch.futures.Future:
        """What `callback` makes of this future, at once."""
        self._fetch()
        return super().then(callback)

    def add_done_callback(self, callback: Callable) -> None:
        """Calls `callback` with this future, at once."""
        self._fetch()
        super().add_done_callback(callback)


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
    waited = [event for event in events[known:] if (event.rank, event.kind) == (me, "waiting")]
    events[known:] = [event for event in events[known:] if event not in waited]
    begin = waited[-1].end if waited else now  # of the communication: to stand still before it is waiting
    private.after_backward(lambda: clock.wait_until(me, end, "all_reduce", begin))
