"""The clock that a program reads: with hardware the virtual one of its device, else the wall clock.

The wall clock times the simulation, in which devices take turns: tokens per second of it say nothing about hardware.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lib.guest import own, private
from lib.guest.callers import for_guests

CLOCKS = ("perf_counter", "monotonic", "time")


class OwnTime:
    """Made for one run; `asked` says afterwards whether the program looked at a clock that was not virtual."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def __call__(self, size: int) -> Iterator[None]:
        """Around a run of `size` devices. To sleep takes virtual time, and lets other devices go on meanwhile."""
        replaced: dict[str, Callable] = {"sleep": for_guests(time.sleep, self._sleep(time.sleep))}
        for name in CLOCKS:
            real = getattr(time, name)
            now = self._reading(real)
            replaced[name] = for_guests(real, now)
            replaced[f"{name}_ns"] = for_guests(getattr(time, f"{name}_ns"), lambda now=now: round(now() * 1e9))
        with private.patched(time, **replaced):
            yield

    def _reading(self, real: Callable[[], float]) -> Callable[[], float]:
        begin = real()

        def now() -> float:
            group = own.here().group
            if group.place.clock is None:
                self.asked = True
                return real()
            return begin + group.now()

        return now

    @staticmethod
    def _sleep(real: Callable[[float], None]) -> Callable[[float], None]:
        def sleep(seconds: float) -> None:
            group = own.here().group
            group.place.step_back(group.me, "sleep()")  # it may wait for what another device does
            clock = group.place.clock
            if clock is None:
                real(seconds)
            else:
                clock.wait_until(group.me, clock.now[group.me] + seconds, "sleep")

        return sleep
