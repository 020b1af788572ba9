"""The exercises of "For real": stubs wait or are wrong, right answers of several styles pass, mistakes have a cause."""

import exercise_checks as checks
import pytest
import torch

from book.exercises import for_real as tasks
from book.exercises.check.runs import SEED
from book.exercises.check.trials import trials
from lib import shard
from lib.devices.pieces import cut

JUDGED = [tasks.hand_out, tasks.step_together, tasks.fit_ping_pong]
EVERY = [*JUDGED, tasks.predict]


# ---- hand_out ----


def by_messages(group, x):
    pieces = cut(x, group.size, 0)
    if group.rank == 0:
        for rank in range(1, group.size):
            group.send(pieces[rank], rank)
        return pieces[0].clone()
    return group.recv(0)


def by_split(group, x):
    return group.scatter(x, src=0, dim=0)


def by_zeros(group, x):
    """An all-to-all in which the others send what nobody reads: right, and too much is sent."""
    return group.all_to_all(x, 0, 0)[: len(shard(x, group, 0))]


def down_the_line(group, x):
    """Each passes on what is not its own: right, but all rows but one piece cross the first link, and so on."""
    if group.rank:
        x = group.recv(group.rank - 1)
    parts = torch.tensor_split(x, group.size - group.rank)
    if group.rank < group.size - 1:
        group.send(torch.cat(parts[1:]), group.rank + 1)
    return parts[0].clone()


def own_rows(group, x):
    return shard(x, group, 0)


def everything_to_all(group, x):
    return shard(group.broadcast(x), group, 0)


def added_up(group, x):
    return group.reduce_scatter(x, dim=0)


def one_by_one(group, x):
    return group.broadcast(x)[group.rank :: group.size]


def the_whole(group, x):
    return group.broadcast(x)


def only_rank_0_calls(group, x):
    return group.scatter(x) if group.rank == 0 else shard(x, group, 0)


def from_the_last(group, x):
    return group.scatter(x, group.size - 1, 0)


# ---- step_together ----


def with_a_flag(group, w, g):
    overflow = (g.abs() > 1.7).any().double()
    return w if group.all_reduce(overflow) > 0 else w - 0.1 * g


def with_where(group, w, g):
    largest = group.all_reduce(torch.stack([g.max(), -g.min()]), op="max").max()
    return torch.where(largest > 1.7, w, torch.sub(w, g, alpha=0.1))


def with_a_list(group, w, g):
    flags = group.all_gather(torch.tensor([float(g.abs().max() > 1.7)]))
    return w.clone() if any(flags.tolist()) else w - g / 10


def asks_everyone_for_all(group, w, g):
    return w if group.all_gather(g).abs().max() > 1.7 else w - 0.1 * g


def decides_alone(group, w, g):
    return w if g.abs().max() > 1.7 else w - 0.1 * g


def without_abs(group, w, g):
    return w if group.all_reduce(g.max(), op="max") > 1.7 else w - 0.1 * g


def all_must_overflow(group, w, g):
    return w if group.all_reduce(g.abs().max(), op="min") > 1.7 else w - 0.1 * g


def adds_the_largest(group, w, g):
    return w if group.all_reduce(g.abs().max()) > 1.7 else w - 0.1 * g


def some_elements(group, w, g):
    return torch.where(g.abs() > 1.7, w, w - 0.1 * g)


def cut_off(group, w, g):
    return w - 0.1 * g.clamp(-1.7, 1.7)


def always(group, w, g):
    return w - 0.1 * g


def waits_in_one_branch(group, w, g):
    if g.abs().max() > 1.7:
        group.all_reduce(torch.ones(()))
        return w
    return w - 0.1 * g


def other_way_round(group, w, g):
    return w - 0.1 * g if group.all_reduce(g.abs().max(), op="max") > 1.7 else w


# ---- fit_ping_pong ----


def fit_by_least_squares(group, sizes, seconds):
    times = group.all_reduce(seconds.amin(0), op="min") / 2
    table = torch.stack([torch.ones_like(sizes), sizes], 1)
    return torch.linalg.solve(table, times)


def fit_in_halves(group, sizes, seconds):
    (t0, t1), (n0, n1) = group.all_reduce(seconds.min(dim=0).values, op="min"), sizes
    beta = (t1 - t0) / 2 / (n1 - n0)
    return torch.stack([t1 / 2 - beta * n1, beta])


def fit_in_numbers(group, sizes, seconds):
    t0, t1 = (group.all_reduce(column.min(), op="min").item() / 2 for column in seconds.T)
    n0, n1 = sizes.tolist()
    return torch.tensor([(t0 * n1 - t1 * n0) / (n1 - n0), (t1 - t0) / (n1 - n0)], dtype=torch.float64)


def fit_all_runs(group, sizes, seconds):
    t = group.all_gather(seconds).amin(0) / 2
    beta = (t[1] - t[0]) / (sizes[1] - sizes[0])
    return torch.stack([t[0] - beta * sizes[0], beta])


def line(sizes, t):
    beta = (t[1] - t[0]) / (sizes[1] - sizes[0])
    return torch.stack([t[0] - beta * sizes[0], beta])


def quietest(group, seconds):
    return group.all_reduce(seconds.amin(0), op="min")


def fit_both_ways(group, sizes, seconds):
    return line(sizes, quietest(group, seconds))


def fit_small_is_alpha(group, sizes, seconds):
    t = quietest(group, seconds) / 2
    return torch.stack([t[0], line(sizes, t)[1]])


def fit_bandwidth(group, sizes, seconds):
    alpha, beta = line(sizes, quietest(group, seconds) / 2)
    return torch.stack([alpha, 1 / beta])


def fit_swapped(group, sizes, seconds):
    return line(sizes, quietest(group, seconds) / 2).flip(0)


def fit_own(group, sizes, seconds):
    return line(sizes, seconds.amin(0) / 2)


def fit_slowest(group, sizes, seconds):
    return line(sizes, group.all_reduce(seconds.amax(0), op="max") / 2)


def fit_added(group, sizes, seconds):
    return line(sizes, group.all_reduce(seconds.amin(0)) / 2)


def fit_mean(group, sizes, seconds):
    return line(sizes, group.all_reduce(seconds.amin(0)) / group.size / 2)


def fit_no_slope(group, sizes, seconds):
    t = quietest(group, seconds) / 2
    return torch.stack([t[0] - t[1] / sizes[1] * sizes[0], t[1] / sizes[1]])


# ---- predict ----


def predict_in_steps(processes, cores, size, latency, per_byte):
    total = 0
    for _ in range(2 * (processes - 1)):
        total += latency + size / processes * per_byte
    total += (processes - 1) * latency
    return total * processes / cores if processes > cores else total


def predict_in_integers(processes, cores, size, latency, per_byte):
    alone = (processes - 1) * (3 * latency + 2 * size // processes * per_byte)
    return alone * max(cores, processes) // cores


def predict_crowded_first(processes, cores, size, latency, per_byte):
    turns = max(processes / cores, 1.0)
    a, b = latency * turns, per_byte * turns
    return [(processes - 1) * (2 * (a + size / processes * b) + a)]


def step_by_counting(group, w, g):
    bad = group.all_reduce(torch.tensor(float((g.abs() > 1.7).any())))
    return w.clone() if bad else torch.sub(w, g, alpha=0.1)


def steps_without_a_rate(group, w, g):
    return w if group.all_reduce(g.abs().max(), op="max") > 1.7 else w - g


def steps_uphill(group, w, g):
    return w if group.all_reduce(g.abs().max(), op="max") > 1.7 else w + 0.1 * g


RIGHT = [
    (tasks.step_together, step_by_counting),
    (tasks.hand_out, by_messages),
    (tasks.hand_out, by_split),
    (tasks.step_together, with_a_flag),
    (tasks.step_together, with_where),
    (tasks.step_together, with_a_list),
    (tasks.fit_ping_pong, fit_by_least_squares),
    (tasks.fit_ping_pong, fit_in_halves),
    (tasks.fit_ping_pong, fit_in_numbers),
]
REMARKED = [
    (tasks.step_together, asks_everyone_for_all, "Right, but it sends more than it needs"),
    (tasks.fit_ping_pong, fit_all_runs, "Right, but it sends more than it needs"),
]

WRONG = [
    (tasks.step_together, steps_without_a_rate, "the rate 0.1 is missing"),
    (tasks.step_together, steps_uphill, "the step goes uphill"),
    (tasks.hand_out, own_rows, "each device cut its own x"),
    (tasks.hand_out, everything_to_all, "Send each device its own rows only"),
    (tasks.hand_out, added_up, "only that of rank 0 counts"),
    (tasks.hand_out, one_by_one, "dealt out one by one"),
    (tasks.hand_out, the_whole, "this is the whole; each device is to return only its own piece"),
    (tasks.hand_out, only_rank_0_calls, "no device can move"),
    (tasks.hand_out, from_the_last, "wrong"),
    (tasks.hand_out, down_the_line, "too many bytes"),
    (tasks.hand_out, by_zeros, "too many bytes"),
    (tasks.step_together, decides_alone, "each device decided for itself"),
    (tasks.step_together, without_abs, "-3 is too large as well"),
    (tasks.step_together, all_must_overflow, "One is enough"),
    (tasks.step_together, adds_the_largest, "unless it is told op='max'"),
    (tasks.step_together, some_elements, "only the elements that overflowed were left out"),
    (tasks.step_together, cut_off, "too large elements were cut off"),
    (tasks.step_together, always, "the step is made always"),
    (tasks.step_together, waits_in_one_branch, "no device can move"),
    (tasks.step_together, other_way_round, "it is the other way round"),
    (tasks.fit_ping_pong, fit_both_ways, "there and back are two messages"),
    (tasks.fit_ping_pong, fit_small_is_alpha, "alpha is what is left"),
    (tasks.fit_ping_pong, fit_bandwidth, "this is the bandwidth"),
    (tasks.fit_ping_pong, fit_swapped, "beta comes first here"),
    (tasks.fit_ping_pong, fit_own, "each device fitted its own runs"),
    (tasks.fit_ping_pong, fit_slowest, "makes it slower, never faster"),
    (tasks.fit_ping_pong, fit_added, "unless it is told op='min'"),
    (tasks.fit_ping_pong, fit_mean, "Of all runs on all devices, the fastest is asked for"),
    (tasks.fit_ping_pong, fit_no_slope, "so it is a slope"),
]

BROKEN = [(tasks.step_together, ["no device can move", "barrier() in group"])]

test_the_stub_waits = checks.stubs_wait([tasks.hand_out, tasks.fit_ping_pong, tasks.predict])
test_the_stub_to_be_mended_is_wrong_by_name = checks.stubs_to_be_mended_are_wrong(BROKEN)
test_a_right_answer_passes = checks.right_answers_pass([], RIGHT)
test_a_right_answer_is_told_what_nobody_asked_for = checks.right_but(REMARKED)
test_a_wrong_answer_is_rejected_by_name = checks.wrong_answers_are_rejected(WRONG)
test_the_solution_can_be_copied_from_the_page = checks.solutions_can_be_copied(
    EVERY, {tasks.predict.name: ""}, torch=torch
)
test_the_page_shows_the_task_and_three_hints = checks.pages_show_task_and_hints(EVERY)


@pytest.mark.parametrize("program", [predict_in_steps, predict_in_integers, predict_crowded_first])
def test_a_right_formula_passes(program):
    verdict = tasks.predict.verdict(program)
    assert verdict.passed, verdict


@pytest.mark.parametrize(("sentence", "slip"), list(tasks.predict.slips["nanoseconds"].items()))
def test_a_wrong_formula_is_rejected_by_name(sentence, slip):
    verdict = tasks.predict.verdict(slip)
    assert not verdict.passed
    assert sentence in str(verdict), verdict


def test_overflows_are_tried_on_all_devices_on_some_and_on_none():
    found = set()
    for trial in trials(tasks.step_together.inputs, tasks.step_together.devices, SEED):
        over = [bool((piece.abs() > tasks.TOO_LARGE).any()) for piece in cut(trial.inputs["g"], trial.devices, 0)]
        found.add("none" if not any(over) else "all" if all(over) else "some")
    assert found == {"none", "some", "all"}
