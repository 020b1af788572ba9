"""The checker itself: what it shows, when it waits, and what it can judge beyond the exercises of one chapter."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import exercise_checks as checks
import pytest
import torch

from book.exercises import for_real, gpt, pipeline, zero
from book.exercises import sharding as tasks
from book.exercises.check.cost import Spent, Talk, check_bytes
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input
from book.exercises.check.trials import one_core, trials
from book.exercises.check.verdict import Fault, Folded, Verdict
from lib import Partial, Replicate, gather_from, shard
from lib.devices.collectives import AllReduce


def one_device(x, w):
    return x @ w


@exercise(
    oracle=one_device,
    inputs={"x": Input("batch in"), "w": Input("in out")},
    returns={"the partial sum": Partial()},
    hints=("a", "b", "c"),
)
def leave_partial(group, x, w):
    """x @ w, left as partial sums."""
    return shard(x, group, 1) @ shard(w, group, 0)


def test_partial_sums_are_judged_by_their_sum():
    assert leave_partial.check(leave_partial.solution).passed
    assert leave_partial.check(lambda group, x, w: leave_partial.solution(group, x, w) + group.rank).state == "wrong"
    assert "2 times too large" in str(leave_partial.check(lambda group, x, w: x @ w))


def raises(group, x, w):
    """Not yet."""
    raise NotImplementedError


def passes(group, x, w):
    pass


def returns_dots(group, x, w):
    return ...


def half_written(group, x, w):
    y = ...
    return group.all_gather(y, 1)


def computes_and_returns_dots(group, x, w):
    group.all_gather(x @ shard(w, group, 1), 1)
    return ...


@pytest.mark.parametrize(
    "stub", [raises, passes, returns_dots, half_written, computes_and_returns_dots, lambda group, x, w: ...]
)
def test_it_waits_for_code_that_is_not_there(stub):
    verdict = tasks.column_forward.check(stub)
    assert verdict.state == "waiting"
    assert not verdict.passed
    with pytest.raises(AssertionError, match="waiting for your code"):
        tasks.column_forward.check(stub, required=True)


def test_an_interrupt_is_not_swallowed():
    def interrupted(group, x, w):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tasks.column_forward.check(interrupted)


def test_the_cores_are_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with one_core():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_runs_of_known_mistakes_are_remembered_and_those_of_an_answer_forgotten():
    runs = []

    def slip(group, x, w):
        runs.append((group.size, tuple(x.shape)))
        return 2 * (x @ w)

    task = replace(leave_partial, slips={"twice": slip}, returns={"y": Replicate()})
    for factor in 3, 2, 2:
        verdict = task.check(lambda group, x, w, factor=factor: factor * (x @ w))
        assert ("twice" in str(verdict)) == (factor == 2), verdict
        assert {key[1] for key in task.remembered} <= {id(slip), id(task.oracle)}
    assert len(runs) == sum(trial.devices for trial in task.trials)


def test_lengths_differ_and_divide_where_they_should():
    for trial in trials({"x": Input("a b"), "w": Input("b c+1")}, (1, 2, 3, 4), seed=0):
        lengths = list(trial.lengths.values())
        assert len(set(lengths)) == len(lengths)
        assert all((n % trial.devices == 0) == trial.even for n in lengths)
        assert trial.inputs["w"].shape == (trial.lengths["b"], trial.lengths["c"] + 1)


def test_a_talk_costs_what_the_engine_charges():
    assert [t.bytes_sent for t in Talk(AllReduce(), "n").traffic({"n": 8}, 4)] == [96] * 4  # 2 * 3/4 * 8 * 8 bytes


def test_too_few_bytes_are_refused_and_a_single_number_may_be_small():
    trial = next(trials({"x": Input("a b")}, (2,), seed=0))
    tensor, number = Talk(AllReduce(), "a b"), Talk(AllReduce(), "")
    enough = tensor.traffic(trial.lengths, 2)[0].bytes_sent

    def spent(more):
        return [Spent({"all_reduce": (2, enough + more)})] * 2

    for more in 0, 4, 8:  # the number in no, four, eight bytes
        check_bytes("", [tensor, number], trial, spent(more))
    with pytest.raises(Fault, match="too few bytes") as refused:
        check_bytes("", [tensor, number], trial, spent(-1))
    assert f"{2 * enough - 2:,} bytes sent, {2 * enough:,} are needed" in refused.value.details[0]
    with pytest.raises(Fault, match="too many bytes"):
        check_bytes("", [tensor, number], trial, spent(9))


def by_gather(group, g):
    every = group.all_gather(g.square().sum()[None])
    return g * (4 / every.sum().sqrt()).clamp(max=1)


def step_by_gather(group, w, g):
    every = group.all_gather(g.abs().max()[None])
    return w if every.max() > 1.7 else w - 0.1 * g


def columns_by_ring(group, x, w):
    pieces = [x @ shard(w, group, 1)]
    for _ in range(group.size - 1):
        group.send(pieces[0], (group.rank + 1) % group.size)
        pieces.insert(0, group.recv((group.rank - 1) % group.size))
    return torch.cat([pieces[(i - group.rank - 1) % group.size] for i in range(group.size)], 1)


@pytest.mark.parametrize(
    ("task", "program", "sent"),
    [
        (zero.clip_pieces, None, "Sent: one all_reduce of a single number."),
        (
            zero.clip_pieces,
            by_gather,
            "Sent: rank 0 called 1 all_gather. Enough is: one all_reduce of a single number.",
        ),
        (for_real.step_together, step_by_gather, "Sent: rank 0 called 1 all_gather. Enough is: one all_reduce"),
        (
            tasks.column_forward,
            None,
            "Sent: (P-1)/P · N bytes per device, as one ring all_gather of (batch, out) sends.",
        ),
        (tasks.column_forward, columns_by_ring, "Sent: rank 0 called 3 recv, 3 send. Enough is: (P-1)/P · N bytes"),
    ],
)
def test_a_right_answer_is_told_what_it_called_and_not_what_another_would(task, program, sent):
    assert sent in str(task.check(program or task.solution, required=True))


def test_a_verdict_reads_the_same_as_text_and_html():
    verdict = Verdict("f", "wrong", "is <wrong>.", ("a & b", "one\ntwo"))
    assert str(verdict) == "✗ Not yet. f is <wrong>.\n  a & b\n  one\n  two"
    shown = verdict._repr_html_()
    assert "is &lt;wrong&gt;." in shown
    assert "a &amp; b\none\ntwo" in shown
    assert "Not yet." in shown


def test_hints_and_solutions_are_folded():
    assert "<summary>Hint 3 of 3</summary>" in tasks.row_forward.hint(3)._repr_html_()
    with pytest.raises(ValueError, match="hints 1, 2 and 3"):
        tasks.row_forward.hint(4)
    solution = tasks.column_forward.show_solution().text
    assert solution.startswith("def column_forward(group, x, w):\n    y = x @")
    assert '"""' not in solution
    assert tasks.column_forward.show_oracle().text == "def product(x, w):\n    return x @ w"
    assert repr(Folded("Title", "a\nb")) == "Title\n    a\n    b"
    assert repr(tasks.two_layers).startswith("Exercise def two_layers(group, x, a, b):\n    relu(x @ a) @ b with")


def scores_in(x):
    return x.masked_fill(torch.ones_like(x, dtype=torch.bool).triu(), -torch.inf).softmax(1)


@pytest.mark.parametrize(
    ("strange", "cause"),
    [
        (lambda x: (1000 + x).exp(), "is inf, as of all above 709"),
        (lambda x: (1000 + x).exp_().log(), "is inf, as of all above 709"),
        (lambda x: (1000 + x).exp() / (1000 + x).exp(), "is inf, as of all above 709"),
        (lambda x: (x - 1000).exp() / (x - 1000).exp(), "0 / 0 is nan. Before, exp of -100"),
        (lambda x: (x - 1000).exp().log(), "log of 0 is -inf. Before, exp of -100"),
        (lambda x: (x - x) / (x - x), "0 / 0 is nan. Line"),
        (lambda x: (x - 1000).log(), "log of -99"),
        (lambda x: (x - 1000).sqrt(), "sqrt of -99"),
        (lambda x: 1 / (x - x), "reciprocal of 0 is inf"),
        (scores_in, "the softmax of a row that is -inf throughout is 0/0"),
        (lambda x: x + torch.inf * (x - x), "0 * inf is nan"),
        (lambda x: x.masked_fill(x > 0, torch.inf) - torch.inf, "inf - inf is nan"),
        (lambda x: x * (1e300 * x).prod(), "prod is where the first inf comes up"),
    ],
)
def test_the_operation_that_first_makes_inf_or_nan_is_named(strange, cause):
    checks.rejects(tasks.column_forward, lambda group, x, w: strange(tasks.column_forward.solution(group, x, w)), cause)


def test_what_is_no_function_is_told_so():
    checks.rejects(tasks.column_forward, 3, "check needs the function column_forward(group, x, w) itself")


def test_terms_are_told_where_one_device_alone_has_none():
    def squeezed(group, x, w, bias):
        terms = gather_from((shard(x, group, 1) @ shard(w, group, 0) + bias / group.size)[None], group, 0)
        return terms.squeeze(0)  # of one device there is one

    checks.rejects(tasks.row_forward, squeezed, "these are terms: added up over dim 0 they are right")


def test_what_is_wrong_at_the_end_is_not_called_zero():
    def wrong_at_the_end(group, x, w):
        y = tasks.column_forward.solution(group, x, w)
        less = y.shape[1] % group.size
        y[:, y.shape[1] - less :] += 1
        return y

    verdict = str(tasks.column_forward.check(wrong_at_the_end))
    assert "is wrong on 2 devices" in verdict
    assert "are 0" not in verdict


def test_numbers_that_are_all_zero_are_no_factor():
    verdict = str(tasks.column_forward.check(lambda group, x, w: 0 * tasks.column_forward.solution(group, x, w)))
    assert "expected" in verdict
    assert "Cause" not in verdict


def test_a_mask_that_is_made_by_a_logarithm_is_not_blamed():
    def masks_by_log(group, x, w):
        y = tasks.column_forward.solution(group, x, w)
        seen = torch.ones_like(y).tril(-1).log()  # -inf above the diagonal, and on it
        return (y + seen).softmax(1)

    checks.rejects(tasks.column_forward, masks_by_log, "the softmax of a row that is -inf throughout")


@pytest.mark.parametrize("task", [pipeline.gpipe_lists, gpt.synchronizations])
def test_a_forgotten_return_is_no_empty_stub(task):
    def forgets(*case):
        task.solution(*case)

    def half_written(*case):
        task.solution(*case)
        ...
        later = ...  # noqa: F841

    assert "Cause: is a return missing?" in str(task.check(forgets))
    assert task.check(half_written).state == "waiting"
    assert task.check(lambda *case: None).state == "waiting"


CHAPTERS = sorted((Path(__file__).parents[3] / "chapters").glob("*.ipynb"))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_the_text_of_an_exercise_writes_shapes_as_its_hints_and_its_solution_do(chapter):
    texts = ["".join(cell["source"]) for cell in json.loads(chapter.read_text("utf-8"))["cells"]]
    exercises = [text for text in texts if text.startswith("### Exercise")]
    assert [re.findall(r"[`$]\[[\w/]+(?:, [\w/]+)*\][`$]", text) for text in exercises] == [[]] * len(exercises)


def bound_in(tree):
    """The names that a cell binds: by an import, a definition or an assignment."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_whoever_goes_back_after_an_exercise_finds_the_names_of_the_chapter_as_they_were(chapter):
    cells = [cell for cell in json.loads(chapter.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    trees = [ast.parse("".join(line for line in cell["source"] if not line.startswith("%"))) for cell in cells]
    checked = {
        name: i for i, cell in enumerate(cells) for name in re.findall(r"\.check\((\w+)", "".join(cell["source"]))
    }
    for name, at in checked.items():
        binds = [i for i, tree in enumerate(trees) if i != at and name in bound_in(tree)]
        uses = [i for i, tree in enumerate(trees) for node in ast.walk(tree) if getattr(node, "id", None) == name]
        others = set(uses) - {at, *binds}
        assert not (binds and others), f"{name}: an exercise, and what cells {binds} mean by it in cells {others}"
