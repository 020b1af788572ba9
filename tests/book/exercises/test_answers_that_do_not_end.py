"""An answer that computes for ever, in any kind of exercise: it is stopped, and its line is named."""

import threading
import time

import pytest
import torch

from book.exercises import guest, one_device, pipeline, sharding
from book.exercises.check import endless


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(endless, "PATIENCE", 0.2)


def spin():
    while True:
        sum(range(100))


def on_one_device(group, x, w):
    spin()


def while_the_others_wait(group, x, w):
    if group.rank == group.size - 1 > 0:
        spin()
    return group.all_gather(sharding.column_forward.solution(group, x, w), 1)


def in_talk(group, x, w):
    while group.size > 1:
        group.barrier()
    return sharding.column_forward.solution(group, x, w)


def and_catches_all(group, x, w):
    while True:
        try:
            spin()
        except Exception:
            continue


def of_numbers(*case):
    spin()


def of_a_generator(*case):
    spin()
    yield


class Backward(torch.autograd.Function):
    """Forward, nothing; backward, without an end."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        spin()


TASKS = {
    "spin": [
        (sharding.column_forward, on_one_device), (sharding.column_forward, while_the_others_wait),
        (sharding.column_forward, and_catches_all),
        (one_device.state_bytes, of_numbers), (pipeline.gpipe_lists, of_numbers),
        (pipeline.gpipe_lists, of_a_generator),
    ],
    "in_talk": [(sharding.column_forward, in_talk)],
}  # fmt: skip


@pytest.mark.parametrize(("where", "task", "program"), [(w, *pair) for w, pairs in TASKS.items() for pair in pairs])
def test_it_is_stopped_and_its_line_named(where, task, program):
    said = str(task.check(program))
    assert f"{task.name} does not end" in said
    assert f"stopped after 0.2 seconds of computing, in {where}, line " in said
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("device ")]


def test_in_the_backward():
    task = next(t for t in vars(sharding).values() if getattr(t, "gradients", ()))

    def program(group, *inputs):
        return Backward.apply(task.solution(group, *inputs))

    said = str(task.check(program))
    assert "does not end" in said
    assert "sum(range(100))" in said or "while True" in said


def test_on_a_guest():
    assert "does not end for 1 device" in str(guest.stops_together.check(of_numbers))


def test_who_comes_back_in_time_is_not_stopped_later(monkeypatch):
    monkeypatch.setattr(endless, "PATIENCE", 1.0)
    assert sharding.column_forward.check(sharding.column_forward.solution).passed
    end = time.process_time() + 1.5
    while time.process_time() < end:
        sum(range(1000))


def test_one_that_is_lost_is_sent_again(monkeypatch):
    """As is one that comes while Python calls a weak reference's function: it is printed, and forgotten."""
    sent = []

    def lose_the_first(thread, error):
        sent.append(error)
        if len(sent) > 1:
            really(thread, error)

    really = endless.raise_in
    monkeypatch.setattr(endless, "AGAIN", 0.1)
    monkeypatch.setattr(endless, "raise_in", lose_the_first)
    with pytest.raises(endless.Fault, match="does not end for a test"), endless.ended(spin, "for a test"):
        spin()
    assert len(sent) == 3  # lost, arrived, and the last one, at the way out
