"""The clock that a program reads: with hardware the virtual one of its device, else the wall clock.

The wall clock times the simulation, in which devices take turns: tokens per second of it say nothing about hardware.
"""

import datetime
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lib.guest import own, private, private_python
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
        dates = _dates(self._reading(time.time))
        with (
            private.patched(time, **replaced),
            private.patched(timeit, default_timer=replaced["perf_counter"]),
            private_python.methods_of_c(datetime.datetime, **dates),
        ):
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


def _dates(now: Callable[[], float]) -> dict[str, classmethod]:
    """The methods of `datetime.datetime` that read a clock, here `now`; `today` asks `time.time`."""
    simulated = {
        "now": lambda kind, tz=None: kind.fromtimestamp(now(), tz),
        "utcnow": lambda kind: kind.fromtimestamp(now(), datetime.UTC).replace(tzinfo=None),
    }

    def real(name: str) -> Callable:
        method = vars(datetime.datetime)[name]
        return lambda kind, *args, **kwargs: method.__get__(None, kind)(*args, **kwargs)

    return {name: classmethod(for_guests(real(name), function)) for name, function in simulated.items()}
