"""A device goes on at the core where the last one stopped, and is free again as soon as it is awake."""

import ctypes
import os
import runpy
import threading

import pytest

from lib.devices import Cluster
from lib.devices.engine import core
from lib.devices.engine.turns import Turns

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone lets a program choose")
SEVERAL = pytest.mark.skipif(
    hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < 2, reason="one core leaves no choice"
)


def meet(group, seen, calls=20):
    """Collectives without a tensor; `seen()` after each of them."""
    found = []
    for _ in range(calls):
        group.barrier()
        found.append(seen())
    return found


@SEVERAL
def test_a_device_wakes_where_the_last_one_stopped():
    def note(where):
        turns.append(where)

    def pass_on(thread):
        note(("stops", here()))
        return plain[0](thread)

    def go_on(allowed):
        note(("wakes", here()))
        plain[1](allowed)

    turns, here, plain = [], ctypes.CDLL(None).sched_getcpu, (core.call_here, core.let_go)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lib.devices.engine.turns.call_here", pass_on)
        patch.setattr("lib.devices.engine.turns.let_go", go_on)
        Cluster(4).run(meet, lambda: None, 100)
    pairs = [
        (before[1], after[1])
        for before, after in zip(turns, turns[1:], strict=False)
        if (before[0], after[0]) == ("stops", "wakes")
    ]
    assert len(pairs) >= 300  # the last to come to a collective need not wait
    # The system may move the one that stops between the two lines that look.
    assert sum(stopped == woken for stopped, woken in pairs) > 0.9 * len(pairs)


def test_the_core_is_chosen_before_the_device_is_woken(monkeypatch):
    class Gate(threading.Semaphore):
        def release(self):
            events.append("woken")
            super().release()

    events, turns = [], Turns(2, lambda rank: turns.step_back(rank), lambda: None)
    monkeypatch.setattr("lib.devices.engine.turns.call_here", lambda thread: events.append("chosen"))
    monkeypatch.setattr(turns, "_may_run", [Gate(0), Gate(0)])
    turns.run()
    assert events == ["chosen", "woken"] * 2


@SEVERAL
def test_a_device_may_use_all_cores_while_it_computes():
    """So may the threads and processes that it starts: a DataLoader's workers, the team that multiplies matrices."""
    before = os.sched_getaffinity(0)
    for found in Cluster(3).run(meet, lambda: os.sched_getaffinity(0)):
        assert found == [before] * 20
    assert os.sched_getaffinity(0) == before


@SEVERAL
def test_cores_that_a_program_chooses_stay_its_own():
    def program(group):
        if group.rank == 1:
            os.sched_setaffinity(0, {last})
        return meet(group, lambda: os.sched_getaffinity(0))

    whole = os.sched_getaffinity(0)
    last = max(whole)
    assert Cluster(3).run(program) == [[whole] * 20, [{last}] * 20, [whole] * 20]
    assert os.sched_getaffinity(0) == whole


def test_a_core_that_the_next_one_may_not_use_is_not_forced_upon_it(monkeypatch):
    set_to = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cores: set_to.append((thread, cores)))
    for allowed, mine, expected in (({1, 2}, 0, None), ({1, 2}, 2, {1, 2}), ({2}, 2, None)):  # one core: no choice
        monkeypatch.setattr(os, "sched_getaffinity", lambda thread, allowed=allowed: allowed)
        monkeypatch.setattr(core, "_number_of_my_core", lambda mine=mine: mine)
        assert core.call_here(7) == expected
        core.let_go(expected)
    assert set_to == [(7, {2}), (0, {1, 2})]


def test_where_it_is_forbidden_or_unknown_all_runs_as_before(monkeypatch):
    def forbidden(*args):
        asked.append(args)
        raise PermissionError("not in this container")

    asked = []
    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {0, 1, core._number_of_my_core()})
    assert Cluster(3).run(meet, lambda: 1) == [[1] * 20] * 3
    assert len(asked) > 20
    asked.clear()
    monkeypatch.setattr(core, "_number_of_my_core", None)
    assert Cluster(3).run(meet, lambda: 1) == [[1] * 20] * 3
    assert not asked


def test_where_python_cannot_choose_a_core_the_system_is_not_even_asked(monkeypatch):
    """Windows has no such library, and to ask for it is an error."""
    monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.setattr(ctypes, "CDLL", None)
    there = runpy.run_path(core.__file__)
    assert there["allowed_here"]() is None
