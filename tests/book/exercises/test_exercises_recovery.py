"""The exercises on recovery: stubs wait, right answers of several styles pass, and wrong ones are rejected by name."""

import math

import exercise_checks as checks
import pytest

from book.exercises import recovery as tasks
from lib.costs.recovery import daly
from lib.devices.pieces import shard_sizes

EVERY = [tasks.to_read, tasks.interval, tasks.saved_bytes, tasks.why_it_jumps]
SENTENCES = {
    "to_read": "in order",
    "interval": "half a percent",
    "saved_bytes": "has the same",
    "why_it_jumps": "its cause",
}


def row_by_row(rows, before, after, rank):
    """Each row by itself, as a tuple of lists."""
    owner = [(file, i) for file, size in enumerate(shard_sizes(rows, before)) for i in range(size)]
    first = sum(shard_sizes(rows, after)[:rank])
    return tuple([file, i, i + 1] for file, i in owner[first : first + shard_sizes(rows, after)[rank]])


def with_empty_reads(rows, before, after, rank):
    """Every file is asked, also for nothing."""
    a = sum(shard_sizes(rows, after)[:rank])
    b = a + shard_sizes(rows, after)[rank]
    found, c = [], 0
    for file, size in enumerate(shard_sizes(rows, before)):
        start, stop = min(max(a - c, 0), size), min(max(b - c, 0), size)
        found.append((file, start, stop))
        c += size
    return found


def chunks(rows, before, after, rank):
    """Pieces as torch.chunk makes them."""
    each = -(-rows // after)
    a, b = min(rows, rank * each), min(rows, (rank + 1) * each)
    found, c = [], 0
    for file, size in enumerate(shard_sizes(rows, before)):
        if max(a, c) < min(b, c + size):
            found.append((file, max(a, c) - c, min(b, c + size) - c))
        c += size
    return found


def young(save_seconds, device_life, devices):
    return (2 * save_seconds * device_life / devices) ** 0.5


def searched(save_seconds, device_life, devices):
    between = device_life / devices
    return min(range(1, 40_000), key=lambda t: save_seconds / t + t / (2 * between))


def counted(parameters, replicas, masters):
    return sum(parameters * size for size in ([2, 4] if masters else [4]) + [4, 4])


test_the_stub_waits = checks.stubs_wait(EVERY)
test_right_answers_pass = checks.right_answers_pass(
    [],
    [
        (tasks.to_read, row_by_row), (tasks.to_read, with_empty_reads), (tasks.to_read, tasks.overlaps),
        (tasks.interval, lambda s, life, n: daly(s, life / n)), (tasks.interval, searched), (tasks.interval, young),
        (tasks.saved_bytes, counted), (tasks.saved_bytes, lambda n, replicas, masters: 14 * n if masters else 12 * n),
        (tasks.why_it_jumps, lambda: {"C": "moments", "B": "stream", "A": "data"}),
    ],
    SENTENCES,
)  # fmt: skip
test_wrong_answers_are_rejected = checks.wrong_answers_are_rejected(
    [
        (tasks.to_read, tasks.numbered_in_the_whole, "counted from where the file begins"),
        (tasks.to_read, lambda *case: tasks.overlaps(*case)[::-1], "the right rows in another order"),
        (tasks.to_read, tasks.by_the_files, "this is the file of the same rank"),
        (tasks.to_read, chunks, "rounding up"),
        (tasks.to_read, tasks.cut_otherwise(lambda rows, after: rows // after), "rounding down"),
        (tasks.to_read, lambda *case: [(0, 1)], "(0, 1) is no such triple"),
        (tasks.to_read, lambda *case: tasks.overlaps(*case)[:1], "missing: rows"),
        (tasks.to_read, lambda rows, before, after, rank: [(before, 0, 1)], "there is no file of rank"),
        (tasks.to_read, lambda *case: [(file, a, b - 1) for file, a, b in tasks.overlaps(*case)], "missing: rows"),
        (tasks.to_read, lambda *case: 3, "expected a list of (file, start, stop), and 3 is no such"),
        (tasks.interval, lambda s, life, n: math.sqrt(2 * s * life), "of ONE device"),
        (tasks.interval, lambda s, life, n: 2 * s * life / n, "the root is missing"),
        (tasks.interval, lambda s, life, n: math.sqrt(s * life / n), "loses HALF an interval"),
        (tasks.interval, lambda s, life, n: life / n, "half of it is lost with each"),
        (tasks.interval, lambda s, life, n: math.sqrt(2 * s * life * n), "not n times as rarely"),
        (tasks.interval, lambda s, life, n: 60.0, "of the time is used; the best interval uses"),
        (tasks.interval, lambda s, life, n: -1, "expected seconds, above 0, given -1"),
        (tasks.saved_bytes, lambda n, replicas, masters: 16 * n, "gradients are not saved"),
        (tasks.saved_bytes, lambda n, replicas, masters: (14 if masters else 12) * n * replicas, "One of them saves"),
        (tasks.saved_bytes, lambda n, replicas, masters: (2 if masters else 4) * n, "the parameters alone"),
        (tasks.saved_bytes, lambda n, replicas, masters: 12 * n, "are in the files too"),
        (tasks.saved_bytes, lambda n, replicas, masters: 14 * n, "there is no second copy"),
        (tasks.saved_bytes, lambda n, replicas, masters: (10 if masters else 8) * n, "two moments of each parameter"),
        (tasks.why_it_jumps, lambda: {"A": "data", "B": "moments", "C": "stream"}, "look at B again: its first loss"),
        (tasks.why_it_jumps, lambda: {"A": "stream", "B": "data", "C": "moments"}, "look at A again"),
        (tasks.why_it_jumps, lambda: {"A": "data", "B": "stream", "C": "rate"}, "'rate' is not one of moments, data"),
        (tasks.saved_bytes, lambda n, r, masters: n * (14 if masters else 12) // r, "nothing is divided"),
        (tasks.why_it_jumps, lambda: {"A": "data"}, "given a dict with the keys 'A'"),
        (tasks.why_it_jumps, lambda: ["data", "stream", "moments"], "given a list of 3"),
    ]
)
test_solutions_can_be_copied = checks.solutions_can_be_copied(
    EVERY, SENTENCES, shard_sizes=shard_sizes, math=math, incidents=tasks.incidents
)
test_pages_show_task_and_hints = checks.pages_show_task_and_hints(EVERY)


def test_what_is_forgotten_shows_as_the_verdicts_say():
    losses = tasks.incidents()
    first = {name: some[0] for name, some in losses.items()}
    mean = {name: sum(some) / len(some) for name, some in losses.items()}
    reasons = {reason: letter for letter, reason in tasks.INCIDENTS.items()}
    assert first[reasons["moments"]] == first["never stopped"]
    assert first[reasons["stream"]] != first["never stopped"] != first[reasons["data"]]
    assert mean[reasons["data"]] < 0.6 * mean["never stopped"]
    assert mean[reasons["moments"]] > 1.05 * mean["never stopped"]
    assert mean[reasons["stream"]] == pytest.approx(mean["never stopped"], rel=0.05)
