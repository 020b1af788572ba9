"""The stop button: KeyboardInterrupt ends a run wherever it is, and the next run works.

The signal is what Ctrl-C and Jupyter send. A program sends it to itself, so that no test has to wait for the right
moment; what it does afterwards would never end by itself.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress

import pytest
import torch

from lib.devices import Cluster
from lib.devices.engine.turns import Turns
from lib.devices.errors import Stopped


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """A shell starts background jobs with SIGINT ignored, and Python leaves it so: `make test &` would hang."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_stop():
    os.kill(os.getpid(), signal.SIGINT)


def press_stop_while_it_computes():
    press_stop()
    while True:
        sum(range(100))


def stop(program, size=4):
    with pytest.raises(KeyboardInterrupt):
        Cluster(size).run(program)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("device ")]
    assert Cluster(size).run(lambda group: int(group.all_reduce(torch.tensor(1)))) == [size] * size


@pytest.mark.parametrize("rank", [0, 3])
def test_while_one_device_computes_and_the_others_wait(rank):
    def program(group):
        if group.rank == rank:
            press_stop_while_it_computes()
        group.barrier()

    stop(program)


def test_while_devices_talk_for_ever():
    def program(group):
        for step in range(10**9):
            if step == 20 and group.rank == 2:
                press_stop()
            group.barrier()

    stop(program)


def test_while_messages_go_round_for_ever():
    def program(group):
        if group.rank == 0:
            press_stop()
        while True:
            group.send(torch.ones(1), dst=(group.rank + 1) % group.size)
            group.recv(src=(group.rank - 1) % group.size)

    stop(program)


def test_before_any_device_has_reached_a_verb():
    def program(group):
        press_stop()
        while True:
            pass

    stop(program)


def test_from_outside_by_a_timer():
    timer = threading.Timer(0.05, press_stop)

    def program(group):
        if group.rank == 0:
            timer.start()
        while True:
            group.all_reduce(torch.ones(10))

    stop(program)


def test_one_device():
    def program(group):
        press_stop()
        while True:
            group.barrier()

    stop(program, size=1)


def test_a_program_that_swallows_the_first_interrupt_is_interrupted_again():
    def program(group):
        press_stop()
        for _ in range(2):
            with suppress(BaseException):
                while True:
                    sum(range(100))
        while True:
            sum(range(100))

    stop(program, size=1)


def test_devices_clean_up_before_they_go():
    cleaned = []

    def program(group):
        try:
            if group.rank == 1:
                press_stop_while_it_computes()
            group.barrier()
        finally:
            cleaned.append(group.rank)

    stop(program, size=3)
    assert sorted(cleaned) == [0, 1]  # device 2 had not begun


def test_the_caller_s_random_stream_stays_where_it_was():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()

    def program(group):
        torch.rand(100)
        press_stop_while_it_computes()

    with pytest.raises(KeyboardInterrupt):
        Cluster(2).run(program)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("started", [False, True], ids=["before", "after"])
def test_while_the_devices_are_being_started(monkeypatch, started):
    start = threading.Thread.start

    def start_and_stop(thread):
        if thread.name == "device 0" and not seen:  # the one that the caller starts; the others are started by devices
            seen.append(thread.name)
            if started:
                start(thread)
            raise KeyboardInterrupt
        start(thread)

    seen, begun = [], []
    monkeypatch.setattr(threading.Thread, "start", start_and_stop)
    stop(lambda group: begun.append(group.rank))
    assert started or not begun  # once the first has been started, the devices may be quicker than the stop


def test_even_an_error_in_the_words_of_an_error_ends_the_run(monkeypatch):
    def stumble(self):
        raise LookupError("no words")

    monkeypatch.setattr("lib.devices.engine.exchange.Exchange.stuck", stumble)
    with pytest.raises(LookupError, match="no words"):
        Cluster(3).run(lambda group: group.recv(src=0))


def test_three_hundred_devices_of_which_most_have_not_begun():
    def program(group):
        press_stop_while_it_computes()

    stop(program, size=300)


def test_three_hundred_devices_that_all_wait_but_one():
    def program(group):
        if group.rank == group.size - 1:
            press_stop_while_it_computes()
        group.barrier()

    stop(program, size=300)


@pytest.fixture
def interruptible(monkeypatch):
    """Who could be interrupted at each moment when the turn was passed on: nobody may, else the turn could be lost."""
    pass_turn, seen = Turns._pass_turn, []

    def look(turns):
        seen.append(turns._interruptible)
        pass_turn(turns)

    monkeypatch.setattr(Turns, "_pass_turn", look)
    return seen


def test_nobody_is_interrupted_while_passing_the_turn(interruptible):
    Cluster(3).run(lambda group: group.barrier())
    assert interruptible == [None] * 5  # two waited, three ended


def test_a_device_that_is_interrupted_on_its_way_out_still_passes_the_turn(interruptible, monkeypatch):
    leave_program, stopped = Turns._leave_program, []

    def stopped_on_the_way_out(turns, rank):
        if not stopped:
            stopped.append(rank)
            raise Stopped
        leave_program(turns, rank)

    monkeypatch.setattr(Turns, "_leave_program", stopped_on_the_way_out)
    assert Cluster(2).run(lambda group: group.rank) == [0, 1]
    assert stopped == [0]
    assert interruptible == [None] * 2


@pytest.mark.parametrize("tracer", [None, lambda *frame: None], ids=["alone", "under a debugger"])
def test_pressed_again_while_it_stops(tracer):
    """A debugger sees each call, and so the interrupt may come at any of them."""

    def program(group):
        try:
            press_stop_while_it_computes()
        finally:
            press_stop_while_it_computes()

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        stop(program)
    finally:
        sys.settrace(before)


def test_a_device_may_take_its_time_to_clean_up():
    cleaned = []

    def program(group):
        try:
            press_stop_while_it_computes()
        finally:
            end = time.monotonic() + 0.02
            while time.monotonic() < end:
                sum(range(100))
            cleaned.append(group.rank)

    stop(program, size=1)
    assert cleaned == [0]


def test_an_interrupt_on_the_way_into_a_wait_ends_it_and_the_others_follow():
    """It comes too late for the check that every verb begins with."""

    def body(rank):
        if rank == 1:
            turns.failure = KeyboardInterrupt()
        try:
            turns.wait(rank)
            ended.append(f"{rank} goes on")
        finally:
            ended.append(rank)

    turns, ended = Turns(2, body, stuck=lambda: None), []
    with pytest.raises(KeyboardInterrupt):
        turns.run()
    assert ended == [1, 0]


def test_an_interrupt_while_nobody_seems_to_move_is_not_forgotten():
    def stuck():
        press_stop()
        while turns.failure is None:
            threading.Event().wait(0.001)
        turns.ready(0)  # somebody can move after all

    turns = Turns(1, lambda rank: turns.wait(rank), stuck)
    with pytest.raises(KeyboardInterrupt):
        turns.run()


def test_a_device_that_computes_is_stopped_also_when_the_first_has_ended():
    def program(group):
        if group.rank == 0:
            first.append(threading.current_thread())
            return
        first[0].join()
        press_stop_while_it_computes()

    first = []
    stop(program, size=2)


def test_a_device_that_is_interrupted_sees_what_stops_the_others_too():
    """One exception for all: not KeyboardInterrupt, which a program may take for its own."""

    def program(group):
        try:
            if group.rank == 1:
                press_stop_while_it_computes()
            group.barrier()
        except BaseException as error:
            seen.append((group.rank, type(error)))
            raise

    seen = []
    stop(program, size=2)
    assert seen == [(1, Stopped), (0, Stopped)]


def test_nobody_can_leave_its_program_while_it_is_interrupted(monkeypatch):
    def look(thread, error):
        locked.append(turns._interrupting.locked())

    locked, turns = [], Turns(1, lambda rank: None, lambda: None)
    monkeypatch.setattr("lib.devices.engine.turns.raise_in", look)
    turns._interruptible = 0
    turns._interrupt_running_device()
    assert locked == [True]


def test_each_interrupt_leaves_more_time_to_clean_up_but_at_most_a_second(monkeypatch):
    class NobodyEnds:
        def is_set(self):
            return len(waits) == 7

        def wait(self, seconds):
            waits.append(seconds)
            return self.is_set()

    waits, turns = [], Turns(1, lambda rank: None, lambda: None)
    monkeypatch.setattr(turns, "_threads", [threading.current_thread()])  # which has begun
    monkeypatch.setattr(turns, "_all_ended", NobodyEnds())
    turns._stop_all()
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_failing_program_under_a_debugger():
    """Traced threads, as under a debugger or coverage: the run hung on Python 3.11."""

    def program(group):
        if group.rank == 0:
            raise ValueError("on rank 0")
        group.barrier()

    def trace(frame, event, arg):
        return trace

    before = threading.gettrace()
    threading.settrace(trace)
    try:
        with pytest.raises(ValueError, match="on rank 0"):
            Cluster(2).run(program)
    finally:
        threading.settrace(before)
