"""An answer may have any form that Python has for it: a list, an array, a tensor, a generator, a number of NumPy."""

import importlib
import math
import pkgutil
from functools import wraps
from itertools import count

import numpy as np
import pytest
import torch

from book import exercises
from book.exercises.check.answers import plain
from book.exercises.check.counting import Counting
from book.exercises.check.planning import Planning
from book.exercises.check.simulated import Simulated


def of_all_chapters() -> list:
    """The exercises whose answer is a list of things or a number."""
    names = [f"book.exercises.{room.name}" for room in pkgutil.iter_modules(exercises.__path__)]
    rooms = map(importlib.import_module, names)
    found = {id(task): task for room in rooms for task in vars(room).values() if isinstance(task, Planning | Counting)}
    return sorted(found.values(), key=lambda task: task.name)


def as_generator(given):
    return (each for each in given) if isinstance(given, list | tuple) else given


def as_the_other(given):
    return list(given) if isinstance(given, tuple) else tuple(given) if isinstance(given, list) else given


def with_numbers_of_numpy(given):
    if isinstance(given, list | tuple):
        return type(given)(map(with_numbers_of_numpy, given))
    if isinstance(given, dict):
        return {name: with_numbers_of_numpy(value) for name, value in given.items()}
    return np.array(given)[()] if type(given) in (int, float) else given


def as_array(given):
    numbers = isinstance(given, list | tuple) and given and all(type(each) in (int, float) for each in given)
    return np.array(given) if numbers else given


def with_tensors(given):
    if isinstance(given, list | tuple):
        return type(given)(map(with_tensors, given))
    if isinstance(given, dict):
        return {name: with_tensors(value) for name, value in given.items()}
    return torch.tensor(given, dtype=torch.float64) if type(given) is float else given


def as_tensor(given):
    array = as_array(with_numbers_of_numpy(given) if type(given) in (int, float) else given)
    return torch.as_tensor(array) if isinstance(array, np.ndarray | np.generic) else given


FORMS = (as_generator, as_the_other, with_numbers_of_numpy, as_array, with_tensors, as_tensor)


@pytest.mark.parametrize("task", of_all_chapters(), ids=lambda task: task.name)
def test_a_right_answer_is_right_in_every_form(task):
    given = {}

    def once(case):  # but for guests: each device must meet the others
        if repr(case) not in given or any(isinstance(one, torch.Tensor) for one in case):
            given[repr(case)] = task.solution(*case)
        return given[repr(case)]

    for form in FORMS:

        @wraps(task.solution)
        def answered(*case, form=form):
            return form(once(case))

        verdict = task.verdict(answered)
        assert verdict.passed, f"{form.__name__}: {verdict}"


@pytest.mark.parametrize("task", of_all_chapters(), ids=lambda task: task.name)
@pytest.mark.parametrize("endless", [count, lambda: range(10**15), lambda: [count()]])
def test_what_does_not_end_is_told_and_not_waited_for(task, endless):
    @wraps(task.solution)
    def answered(*case):
        return endless()

    if not isinstance(task, Simulated):  # there this is what one device returns, which must be a number
        assert "without an end" in str(task.verdict(answered))


STRANGE = [True, -1, math.nan, 10**400, 1j, "x", {}, {1: None}, {"A": []}, [None], [[]], [[1, 2, 3]], [(1, 2, "x")],
           (1, None), (None, "x"), torch.ones(2, 2), [torch.ones(2, 2)], [{}], {None}, object, lambda x: x]  # fmt: skip


@pytest.mark.parametrize("task", of_all_chapters(), ids=lambda task: task.name)
def test_whatever_is_returned_gets_a_verdict(task):
    for strange in STRANGE:

        def all_of_it(*case, strange=strange):
            return strange

        def in_it(*case, strange=strange):
            given = task.solution(*case)
            return type(given)([strange, *given][: len(given)]) if isinstance(given, list | tuple) else strange

        for program in all_of_it, in_it:
            verdict = task.verdict(program)
            assert str(verdict)
            assert not verdict.passed, strange


def test_plain():
    for given, expected in (
        (np.float32(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        ([torch.arange(2), torch.tensor(3)], [[0, 1], 3]),
        ((np.int64(1), [np.ones(2)]), (1, [[1.0, 1.0]])),
        (map(int, "12"), [1, 2]),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor([[1], [2]]), [[1], [2]]),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        ({"a": range(2)}, {"a": [0, 1]}),
        ({1, 2}, {1, 2}),
        ("12", "12"),
    ):
        found = plain(given)
        assert found == expected
        assert type(found) is type(expected)
    assert plain((r * k for k in range(2)) for r in range(3)) == [[0, 0], [0, 1], [0, 2]]
    matrix = torch.ones(2, 2)
    assert plain([matrix])[0] is matrix
    step = object()
    assert plain([step])[0] is step
