"""The exercises on types: the stub waits, solutions pass, mistakes are rejected by name; outer's rule is the truth."""

import exercise_checks as checks
import pytest
import torch

from book.exercises import typed as tasks
from lib import Cluster, copy_to, reduce_from

EVERY = [tasks.block_kinds, tasks.wrong_lines, tasks.outer]


def gradients_as_values(block):
    return tasks.without_gradients(block)


def values_alone(block):
    return {name: kind.partition("|")[0] for name, kind in tasks.right_kinds(block).items()}


def cut_by_dim_1(block):
    return {name: kind.replace("S2", "S1") for name, kind in tasks.right_kinds(block).items()}


def cut_by_the_last(block):
    return {name: kind.replace("S2", "S-1") for name, kind in tasks.right_kinds(block).items()}


def kinds_with_spaces(block):
    """Right as well."""
    return {name: kind.replace("|", " | ").lower() for name, kind in tasks.right_kinds(block).items()}


def summands_alike(block):
    return tasks.with_kinds(block, summand="P|P")


def entered_alike(block):
    return tasks.with_kinds(block, entered="R|R")


def as_a_list(block):
    return list(tasks.right_kinds(block).values())


def last_lines():
    return [len(lines) for lines in tasks.PROGRAMS]


def one_off():
    return [2, 3, 4, 4, 3, 2, 3, 4, 2, 5]


def in_quotes():
    return [str(line) for line in tasks.right_lines()]


def from_zero():
    return [line - 1 for line in tasks.right_lines()]


def nine():
    return [1] * 9


def outer_by_table(a, b):
    """Right as well."""
    table = {("R|R", "R|R"): "R|R", ("R|P", "R|P"): "R|P", ("P|R", "R|P"): "P|R", ("R|P", "P|R"): "P|R"}
    table |= {("S0|S0", "R|P"): "S0|S0", ("R|P", "S0|S0"): "S1|S1"}
    return table.get((a, b), "refused")


def outer_forgets_f(a, b):
    return tasks.outer_without_f(a, b)


def outer_enters_both(a, b):
    return tasks.outer_of_both(a, b, "R|P")


def outer_keeps_whole(a, b):
    return tasks.outer_of_both(a, b, "R|R")


def outer_refuses_sums(a, b):
    return "refused" if "P|R" in (a, b) else tasks.right_outer(a, b)


def outer_keeps_dim_0(a, b):
    return tasks.right_outer(a, b).replace("S1", "S0")


def outer_in_numbers(a, b):
    return 0


test_the_stub_waits = checks.stubs_wait(EVERY)
test_right_answers_pass = checks.right_answers_pass(
    EVERY,
    [(tasks.outer, outer_by_table), (tasks.block_kinds, kinds_with_spaces)],
    {"block_kinds": "every line of both blocks", "wrong_lines": "all ten", "outer": "all 16 pairs"},
)


@pytest.mark.parametrize(
    ("task", "program", "words"),
    [
        (tasks.block_kinds, gradients_as_values, "that of a summand is whole"),
        (tasks.block_kinds, values_alone, 'Write value and gradient, as "R|P"'),
        (tasks.block_kinds, cut_by_dim_1, "y = F.gelu(e @ a): the value is not 'S1'"),
        (tasks.block_kinds, cut_by_the_last, "'S-1|S-1' is no kind"),
        (tasks.block_kinds, gradients_as_values, "e = copy_to(h, group): the gradient is not 'R'"),
        (tasks.block_kinds, summands_alike, "each summand gets the whole gradient"),
        (tasks.block_kinds, entered_alike, "what has entered: its gradient is a partial sum"),
        (tasks.block_kinds, as_a_list, "expected a dict"),
        (tasks.wrong_lines, last_lines, "refused where it is made"),
        (tasks.wrong_lines, one_off, "right for 9 of 10"),
        (tasks.wrong_lines, in_quotes, "without quotes"),
        (tasks.wrong_lines, from_zero, "counted from 0"),
        (tasks.wrong_lines, nine, "expected a list of 10"),
        (tasks.outer, outer_forgets_f, "it must have entered"),
        (tasks.outer, outer_enters_both, "beside R|P is not R|P"),
        (tasks.outer, outer_keeps_whole, "beside R|P is not R|R"),
        (tasks.outer, outer_refuses_sums, "linear in each of the two"),
        (tasks.outer, outer_keeps_dim_0, "S1|S1 there"),
        (tasks.outer, outer_in_numbers, "is wrong for a R|R and b R|R"),
    ],
    ids=checks.name_of,
)
def test_wrong_answers_are_rejected_by_name(task, program, words):
    checks.rejects(task, program, words)


def test_each_of_the_ten_has_one_wrong_line():
    """It is refused, and nothing before it."""
    for lines in tasks.PROGRAMS:
        found = tasks.typed_run(lines)
        assert found[-1][2] == "refused"
        assert all(kind != "refused" for *_, kind in found[:-1])


def test_the_ten_run_without_types():
    """So what types find is no error of shapes."""

    def run(group):
        for lines in tasks.PROGRAMS:
            names = {"F": torch.nn.functional, "group": group, **vars(tasks.conjugates)}
            names |= {name: torch.ones(shape) for name, (shape, _) in tasks.GIVEN.items()}
            exec("\n".join(lines), names)

    Cluster(2).run(run)


@pytest.mark.parametrize(("a", "b"), tasks.outer.cases)
def test_outer_s_rule_is_what_numbers_say(a, b):
    """Run on two devices without types, and compared with one: right where the rule gives a kind, wrong where not."""

    def placed(x, kind, group):
        if kind == "S0|S0":
            return x.chunk(group.size)[group.rank].clone().requires_grad_()
        if kind == "P|R":
            return (x * (0.25 if group.size == 1 else (0.1, 0.15)[group.rank])).requires_grad_()
        return x.clone().requires_grad_()

    def run(group):
        torch.manual_seed(0)
        given = [placed(torch.randn(4), kind, group) for kind in (a, b)]
        above = torch.randn(4, 4)
        entered = [copy_to(x, group) if k == "R|P" else x for x, k in zip(given, (a, b), strict=True)]
        y = torch.outer(*entered)
        # placed as the rule says, or as the shape does where there is none
        says = tasks.outer.solution(a, b)
        if group.size > 1 and (says == "S0|S0" or (says == "refused" and a == "S0|S0")):
            above = above.chunk(2, 0)[group.rank]
        if group.size > 1 and (says == "S1|S1" or (says == "refused" and b == "S0|S0")):
            above = above.chunk(2, 1)[group.rank] if above.shape == (4, 4) else above[:, : y.shape[1]]
        y = reduce_from(y, group) if "P|R" in (a, b) else y
        (y * above).sum().backward()
        return y.detach(), [x.grad for x in given]

    (y, grads), both = Cluster(1).run(run)[0], Cluster(2).run(run)
    says = tasks.outer.solution(a, b)
    if says == "S0|S0":
        whole = torch.cat([each[0] for each in both])
    elif says == "S1|S1":
        whole = torch.cat([each[0] for each in both], 1)
    else:
        whole = both[0][0]
    right = whole.shape == y.shape and torch.allclose(whole, y)
    for i, kind in enumerate((a, b)):
        parts = [each[1][i] for each in both]
        wanted = grads[i].chunk(2) if kind == "S0|S0" else [grads[i]] * 2
        right &= says in ("R|P",) or all(torch.allclose(p, w) for p, w in zip(parts, wanted, strict=True))
    assert right == (says != "refused")
