"""Waiting for what nobody announces: a device asks again and again, and lets the others go on in between.

When all others stand still or ask in vain too, nobody is left who could end it: a deadlock, and named at once. Where
something else could, a thread of the program or a real process, the devices are patient.
"""

import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import Any

from lib.devices.engine.turns import Turns
from lib.guest import own

PATIENCE = 60.0  # seconds, where something besides the devices may come to help
AT_ONCE = 0.3  # where only a thread could, that hands on what a device has put into a queue
_sleep, _now = time.sleep, time.monotonic  # those of the machine: programs may have a virtual clock


class Asking:
    """Of one run: which devices ask for something, without a time limit of their own."""

    def __init__(self) -> None:
        self._asking: dict[int, str] = {}  # rank -> for what
        self._in_vain: set[int] = set()  # those who have asked since anything has changed
        self._since: float  # when that was
        self._helped = 0.0  # when something besides the devices was last seen at work
        self._threads = set(threading.enumerate())  # from before the run: they know nothing of it
        self._children = set(multiprocessing.active_children())  # nor do these

    def until(self, attempt: Callable[[], Any], what: str, timeout: float | None = None) -> Any:
        """What `attempt` gives, as soon as that is not None; None after `timeout` seconds. DeadlockError names all who
        wait when nobody can end it."""
        group, begin = own.here().group, _now()
        place, me = group.place, group.me
        if timeout is None:
            self._asking[me] = what
            self._changed()
        try:
            while (got := attempt()) is None:
                if timeout is None:
                    self._check(place, me)
                elif _now() - begin >= timeout:
                    return None
                place.step_back(me, what)
                _sleep(0.0005)  # queues are filled by threads of their own
        finally:
            self._asking.pop(me, None)
            self._changed()
        return got

    def _check(self, place: Any, me: int) -> None:
        turns: Turns = place.turns
        if not self._asking.keys() >= set(turns.in_line):
            self._changed()  # somebody else can go on
        elif self._in_vain >= self._asking.keys():
            since, patience = max(self._since, self._helped), AT_ONCE
            if self._others(turns):
                self._helped = _now()
                since, patience = self._since, PATIENCE
            if _now() - since > patience:
                raise place.deadlock(self._asking)
        self._in_vain.add(me)

    def _changed(self) -> None:
        self._in_vain.clear()
        self._since = _now()

    def _started(self) -> set[multiprocessing.process.BaseProcess]:
        return set(multiprocessing.active_children()) - self._children

    def _others(self, turns: Turns) -> bool:
        """Whether anything besides the devices is at work: a thread of the program's own, or a real process."""
        new = [thread for thread in set(threading.enumerate()) - self._threads if not turns.is_a_device(thread)]
        feeders = [thread for thread in new if thread.name == "QueueFeederThread"]  # wait for what devices put
        # A simulated process, too, is an active child, and has no sentinel.
        return len(new) > len(feeders) or any(child.sentinel for child in self._started())
