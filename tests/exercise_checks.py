"""What is checked of every exercise. Each function here makes a test: `test_the_stub_waits = stubs_wait(EVERY)`.

pytest takes a failing `assert` apart only inside test files, so the asserts here show the verdict themselves.
"""

import re

import pytest

ON_FOUR = "is right on 1, 2, 3 and 4 devices"


def name_of(value):
    return getattr(value, "__name__", None) or getattr(value, "name", None)


def defined_by(source, name, names):
    """The function that a cell of a notebook defines, where these names are imported."""
    cell = dict(names)
    exec(source, cell)
    return cell[name]


def rejects(task, program, *words, twice=True):
    """Asserts that the verdict is "wrong", says all these words, and, if asked `twice`, is the same the second time."""
    verdict = task.check(program)
    assert verdict.state == "wrong", verdict
    assert not verdict.passed, verdict
    # The line that a verdict quotes may be the row of the test, with these very words.
    told = re.sub(r"(line \d+): .*", r"\1", str(verdict), flags=re.IGNORECASE)
    for expected in words:
        assert expected in told, f"expected {expected!r} in:\n{verdict}"
    if twice:
        again = task.check(program)
        assert str(again) == str(verdict), f"the text is committed in notebooks:\n{verdict}\n{again}"


def stubs_wait(tasks):
    @pytest.mark.parametrize("task", tasks, ids=name_of)
    def test(task):
        verdict = task.check(defined_by(task.stub, task.name, {}))
        assert str(verdict) == f"… Waiting. {task.name} is waiting for your code.", verdict

    return test


def stubs_to_be_mended_are_wrong(rows, **names):
    """`rows` of (task, what its verdict says); `names` are what the stub needs imported."""

    @pytest.mark.parametrize(("task", "words"), rows, ids=[name_of(task) for task, _ in rows])
    def test(task, words):
        rejects(task, defined_by(task.stub, task.name, names), *words)

    return test


def right_answers_pass(tasks, others, sentences=None):
    """The solutions of `tasks`, and `others`: rows of (task, program). Where `solutions_can_be_copied` judges the
    solutions, they need not be judged here again.

    The verdict says `ON_FOUR`, or what `sentences` has under the name of the task.
    """
    solutions = [(task, task.solution) for task in tasks]

    @pytest.mark.parametrize(("task", "program"), [*solutions, *others], ids=name_of)
    def test(task, program):
        verdict = task.check(program, required=True)
        assert verdict.passed, verdict
        assert (sentences or {}).get(task.name, ON_FOUR) in str(verdict), verdict

    return test


def right_but(rows):
    """`rows` of (task, program, words): right answers, and what is told of them beside "correct"."""

    @pytest.mark.parametrize(("task", "program", "words"), rows, ids=name_of)
    def test(task, program, words):
        verdict = task.check(program, required=True)
        assert words in str(verdict), f"expected {words!r} in:\n{verdict}"

    return test


def wrong_answers_are_rejected(rows):
    """`rows` of (task, program, cause): words that name this mistake and no other. Of each task, one of them twice."""
    first = {task.name: program for task, program, *_ in reversed(rows)}

    @pytest.mark.parametrize(("task", "program", "cause"), rows, ids=name_of)
    def test(task, program, cause):
        rejects(task, program, cause, twice=program is first[task.name])

    return test


def each_gradient_is_asked_for(rows):
    """`rows` of (task, the names of the inputs that it trains)."""
    trained = [(task, name) for task, names in rows for name in names.split()]

    @pytest.mark.parametrize(("task", "name"), trained, ids=name_of)
    def test(task, name):
        def detaches(group, *inputs):
            named = zip(task.inputs, inputs, strict=True)
            return task.solution(group, *(x.detach() if own == name else x for own, x in named))

        verdict = task.check(detaches)
        assert f"nothing connects {name} with the result" in str(verdict), verdict

    return test


def solutions_can_be_copied(tasks, sentences=None, **names):
    """The text that the page shows is right, where `names` are imported. `sentences` as in `right_answers_pass`."""

    @pytest.mark.parametrize("task", tasks, ids=name_of)
    def test(task):
        verdict = task.check(defined_by(task.show_solution().text, task.name, names), required=True)
        assert verdict.passed, verdict
        if sentences is not None:
            assert sentences.get(task.name, ON_FOUR) in str(verdict), verdict

    return test


def pages_show_task_and_hints(tasks):
    @pytest.mark.parametrize("task", tasks, ids=name_of)
    def test(task):
        assert repr(task).startswith(f"Exercise def {task.name}("), repr(task)
        hints = {task.hint(number).text for number in (1, 2, 3)}
        assert len(hints) == 3, hints

    return test
