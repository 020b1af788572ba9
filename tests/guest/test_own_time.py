"""What a program reads as the time: with hardware the virtual clock, whichever way it asks."""

import datetime
import pickle
import time
import timeit
from dataclasses import replace
from datetime import datetime as imported_before

import pytest

from lib.devices import Cluster
from lib.guest.own_time import OwnTime
from lib.guest.program import guest

CLOCKS = {
    **{name: lambda name=name: getattr(time, name)() for name in ("perf_counter", "monotonic", "time")},
    **{f"{name}_ns": lambda name=name: getattr(time, f"{name}_ns")() / 1e9 for name in ("perf_counter", "time")},
    "timeit": lambda: timeit.default_timer(),
    "now": lambda: datetime.datetime.now().timestamp(),
    "now in UTC": lambda: imported_before.now(datetime.UTC).timestamp(),
    "today": lambda: imported_before.today().timestamp(),
    "utcnow": lambda: imported_before.utcnow().replace(tzinfo=datetime.UTC).timestamp(),
}
HOUR = 3600.0
IN_A_LIBRARY: dict = {}
exec(compile("from datetime import datetime\ndef read(): return datetime.now()", "/x/site-packages/y.py", "exec"),
     IN_A_LIBRARY)  # fmt: skip


def run(program, hardware="H100"):
    clock = OwnTime()
    return Cluster(1, hardware).run(replace(guest(program), outside=(clock,)))[0], clock.asked


@pytest.mark.parametrize("name", CLOCKS)
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow")
def test_an_hour_passes_on_every_clock(name):
    def program():
        before = CLOCKS[name]()
        time.sleep(HOUR)
        return CLOCKS[name]() - before

    passed, asked = run(program)
    assert abs(passed - HOUR) < 2e-6  # dates count microseconds
    assert not asked


def test_libraries_see_the_time_of_the_host():
    def program():
        time.sleep(HOUR)
        return (datetime.datetime.now() - IN_A_LIBRARY["read"]()).total_seconds()

    ahead, _ = run(program)
    assert HOUR - 60 < ahead < HOUR + 60


def test_dates_are_of_the_class_that_they_were():
    real = {name: vars(datetime.datetime)[name] for name in ("now", "utcnow")}

    def program():
        now = datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=2)))
        return type(now) is imported_before, pickle.loads(pickle.dumps(now)) == now, now.utcoffset().seconds

    assert run(program)[0] == (True, True, 7200)
    assert {name: vars(datetime.datetime)[name] for name in real} == real


def test_without_hardware_who_looks_is_told():
    def program():
        return abs(datetime.datetime.now().timestamp() - time.time()) < 60

    assert run(program, None) == (True, True)
    assert run(lambda: True, None) == (True, False)
