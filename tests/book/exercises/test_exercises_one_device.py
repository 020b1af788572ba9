"""The exercises of "Why one device is not enough": right answers in several styles, wrong ones with their cause."""

import math

import numpy as np
import pytest

from book.exercises import one_device as tasks

EVERY = [tasks.layer_flops, tasks.state_bytes, tasks.largest_batch, tasks.hours_and_dollars]


def flops_by_matrices(tokens, hidden, heads, kv_heads, inner):
    head = hidden // heads
    matrices = [hidden, kv_heads * head, kv_heads * head, hidden, inner, inner, inner]
    weights = sum(hidden * columns for columns in matrices)
    return 2 * tokens * weights + heads * (2 * tokens * head * tokens) * 2


def flops_one_by_one(tokens, hidden, heads, kv_heads, inner):
    total, head = 0, hidden // heads
    for rows, columns in ((hidden, hidden), (hidden, head * kv_heads), (hidden, head * kv_heads), (hidden, hidden)):
        total += 2 * tokens * rows * columns
    for _ in range(heads):
        total += 2 * tokens * head * tokens + 2 * tokens * tokens * head
    for rows, columns in ((hidden, inner), (hidden, inner), (inner, hidden)):
        total += 2 * tokens * rows * columns
    return total


def flops_as_float(tokens, hidden, heads, kv_heads, inner):
    return 2.0 * tokens * hidden * (2 * hidden + 2 * hidden * kv_heads / heads + 2 * tokens + 3 * inner)


def state_with_a_dict(parameters, devices, zero):
    each = {"p": 2, "g": 2, "o": 12}
    least = {"p": 3, "g": 2, "o": 1}
    return [each[k] * parameters // (devices if zero >= least[k] else 1) for k in each]


def state_by_stages(parameters, devices, zero):
    p = g = o = parameters
    if zero > 0:
        o /= devices
    if zero > 1:
        g /= devices
    if zero > 2:
        p /= devices
    return 2 * p, 2 * g, 12 * o


def batch_by_loop(memory, state, per_text, logits):
    texts, free = 0, memory - state
    while free >= per_text + logits:
        free -= per_text + logits
        texts += 1
    return texts


def batch_by_floor(memory, state, per_text, logits):
    return max(0, math.floor((memory - state) / (per_text + logits)))


def batch_by_range(memory, state, per_text, logits):
    return len(range(state + per_text + logits, memory + 1, per_text + logits))


def price_by_divmod(parameters, tokens, devices, teraflops, cents):
    hours, rest = divmod(6 * parameters * tokens * 10**6, devices * teraflops * 3600)
    hours += bool(rest)
    return hours, hours * devices * cents // 100


def state_by_thresholds(parameters, devices, zero):
    sizes = zip((2, 2, 12), (3, 2, 1), strict=True)
    return tuple(size * parameters / devices ** (zero >= first) for size, first in sizes)


def price_in_floats(parameters, tokens, devices, teraflops, cents):
    hours = math.ceil(6 * parameters * 1e9 * tokens * 1e9 / (devices * teraflops * 1e12) / 3600)
    return hours, hours * devices * cents // 100


def price_by_seconds(parameters, tokens, devices, teraflops, cents):
    seconds = 6 * parameters * tokens * 10**18 / (devices * teraflops * 10**12)
    hours = int(seconds // 3600) + (seconds % 3600 > 0)
    return [hours, int(hours * devices * cents / 100)]


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_the_stub_waits_and_the_solution_passes(task):
    scope = {}
    exec(task.stub, scope)
    assert task.verdict(scope[task.name]).state == "waiting"
    assert task.verdict(task.solution).passed


@pytest.mark.parametrize(
    ("task", "program"),
    [
        (tasks.layer_flops, flops_by_matrices),
        (tasks.layer_flops, flops_one_by_one),
        (tasks.layer_flops, flops_as_float),
        (tasks.state_bytes, state_with_a_dict),
        (tasks.state_bytes, state_by_stages),
        (tasks.largest_batch, batch_by_loop),
        (tasks.largest_batch, batch_by_floor),
        (tasks.hours_and_dollars, price_in_floats),
        (tasks.hours_and_dollars, price_by_seconds),
        (tasks.hours_and_dollars, price_by_divmod),
        (tasks.largest_batch, batch_by_range),
        (tasks.state_bytes, state_by_thresholds),
    ],
)
def test_other_styles_of_right_answers_pass(task, program):
    verdict = task.verdict(program)
    assert verdict.passed, str(verdict)


def slips():
    for task in EVERY:
        for place, name in enumerate(task.returns):
            for sentence, slip in task.slips.get(name, {}).items():
                yield pytest.param(task, place, sentence, slip, id=f"{task.name}: {sentence[:30]}")


@pytest.mark.parametrize(("task", "place", "sentence", "slip"), list(slips()))
def test_a_typical_slip_is_named(task, place, sentence, slip):
    def program(*numbers):
        right = list(task.oracle(*numbers))
        right[place] = slip(*numbers)
        return right if len(right) > 1 else right[0]

    verdict = task.verdict(program)
    assert not verdict.passed
    # Where two slips give the same number in the first case that differs, either is a right cause.
    first = next(case for case in task.cases if program_value(program, case, place) != task.oracle(*case)[place])
    same = [s for s, other in task.slips[task.returns[place]].items() if other(*first) == slip(*first)]
    assert any(s in str(verdict) for s in same), str(verdict)


def program_value(program, case, place):
    given = program(*case)
    return given[place] if isinstance(given, list) else given


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_nonsense_is_refused(task):
    for nonsense in (lambda *n: "many", lambda *n: [1, 2, 3, 4, 5], lambda *n: 1 / 0, lambda: 1, lambda *n: -1):
        assert not task.verdict(nonsense).passed


def scores_of_one_head(tokens, hidden, heads, kv_heads, inner):
    head = hidden // heads
    return tasks.layer_flops.solution(tokens, hidden, heads, kv_heads, inner) - 4 * tokens**2 * (hidden - head)


def one_hour_more(parameters, tokens, devices, teraflops, cents):
    hours = 6 * parameters * tokens * 10**6 // (devices * teraflops * 3600) + 1
    return hours, hours * devices * cents // 100


def only_where_it_fits(memory, state, per_text, logits):
    if memory >= state:
        return (memory - state) // (per_text + logits)


def test_a_cause_must_explain_every_case():
    assert "return 0" in str(tasks.largest_batch.verdict(lambda m, s, p, g: (m - s) // (p + g)))
    verdict = str(tasks.layer_flops.verdict(scores_of_one_head))
    assert "is wrong" in verdict
    assert "three matrices" not in verdict
    assert "a whole hour needs no other" in str(tasks.hours_and_dollars.verdict(one_hour_more))


def test_none_in_some_cases_is_no_stub():
    verdict = tasks.largest_batch.verdict(only_where_it_fits)
    assert "returns None for memory=80" in str(verdict)
    assert "is a return missing?" in str(verdict)


def test_an_array_is_as_good_as_a_tuple():
    def in_an_array(*numbers):
        return np.array(tasks.state_bytes.solution(*numbers))

    assert tasks.state_bytes.verdict(in_an_array).passed


@pytest.mark.parametrize(
    ("each", "cause"),
    [
        ((6, 2, 8), "the master weights are counted here. They belong to the optimizer"),
        ((2, 4, 12), "the gradients have 16 bits here"),
        ((4, 4, 8), "the weights have 16 bits"),
        ((2, 2, 6), "momentum, variance and master weights are float32"),
    ],
)
def test_bytes_that_are_common_elsewhere_are_named(each, cause):
    def program(parameters, devices, zero):
        right = tasks.state_bytes.solution(parameters, devices, zero)
        return [mine * other // size for other, size, mine in zip(each, (2, 2, 12), right, strict=True)]

    assert cause in str(tasks.state_bytes.check(program))


def test_the_right_numbers_in_another_order_are_told():
    verdict = tasks.state_bytes.check(lambda *sizes: tasks.state_bytes.solution(*sizes)[::-1])
    assert "the right numbers in another order. Return bytes of parameters" in str(verdict)
