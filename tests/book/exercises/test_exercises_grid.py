"""The exercises on grids: the stub waits, solutions pass, each typical mistake is rejected by its name."""

import exercise_checks as checks
import torch

from book.exercises import grid as tasks
from lib.parallel.grid.config import AXES

EVERY = [tasks.group_of, tasks.broken_rules, tasks.axis_order, tasks.micro_batches]


def group_by_view(sizes, axis, rank):
    """Right as well: the line of the tensor."""
    grid = torch.arange(torch.tensor(list(sizes.values())).prod()).view(*sizes.values())
    lines = grid.movedim(list(sizes).index(axis), -1).reshape(-1, sizes[axis]).tolist()
    return next(one for one in lines if rank in one)


def rules_as_a_list(config, devices, batch):
    return sorted(tasks.rules_by_lib(config, devices, batch))


def rules_all(config, devices, batch):
    return set(tasks.RULES)


def rules_none(config, devices, batch):
    return set()


def by_bytes_alone(config, model, batch, length, hardware):
    """The axis that sends most goes inside: right for these three."""
    from lib.costs.grid import axis_traffic

    sent = {axis: t.size for axis, t in axis_traffic(config, model, batch, length).items()}
    return tuple(sorted(AXES, key=lambda axis: sent[axis]))


def known(task, number):
    return list(task.slips.values())[number], list(task.slips)[number][:40]


def rules_where(**other):
    """The solution, with another test for one rule."""

    def program(config, devices, batch):
        broken = tasks.broken_rules.solution(config, devices, batch)
        for name, test in other.items():
            broken = broken - {name} | ({name} if test(config, devices, batch) else set())
        return broken

    return program


test_the_stub_waits = checks.stubs_wait(EVERY)
test_right_answers_pass = checks.right_answers_pass(
    EVERY,
    [(tasks.group_of, group_by_view), (tasks.broken_rules, rules_as_a_list)],
    {task.name: task.praise for task in EVERY},
)
test_wrong_answers_are_rejected = checks.wrong_answers_are_rejected(
    [
        *[(task, *known(task, number)) for task in EVERY for number in range(len(task.slips))],
        (tasks.group_of, lambda sizes, axis, rank: (rank,), "given [5]"),
        (tasks.group_of, tasks.own_size_too, "BEHIND the axis"),
        (
            tasks.broken_rules,
            rules_where(devices=lambda c, n, b: n % (c.dp * c.pp * c.cp * c.tp)),
            "must BE the number",
        ),
        (tasks.broken_rules, rules_where(experts=lambda c, n, b: c.dp % c.ep), "this model has one expert"),
        (tasks.broken_rules, rules_where(batch=lambda c, n, b: b % c.dp or b % c.micro_batches), "is not enough"),
        (tasks.group_of, lambda sizes, axis, rank: rank, "expected a list of ranks"),
        (tasks.group_of, lambda sizes, axis, rank: [rank / 1], "ranks are whole numbers, given [5.0]"),
        (tasks.group_of, lambda sizes, axis, rank: sizes["ep"], "KeyError"),
        (tasks.broken_rules, rules_all, "it names rules that hold: batch"),
        (tasks.broken_rules, rules_none, "it misses: "),
        (tasks.broken_rules, lambda *case: {"vocabulary"}, "the names are devices"),
        (tasks.broken_rules, lambda *case: "devices", "expected a set of names"),
        (tasks.axis_order, lambda *case: ("dp", "tp"), "in some order, outermost first"),
        (tasks.axis_order, lambda *case: ("dp", "tp", "cp", "pp"), "the most goes to tp"),
        (tasks.micro_batches, lambda batch, texts, dp: 2, "it gives 2: then a step has 8 x 2 x 4 = 64 texts"),
        (tasks.micro_batches, lambda batch, texts, dp: batch / (dp * texts), "it gives"),
        (tasks.micro_batches, lambda batch, texts, dp: "impossible", "8 x 4 divides 256"),
    ]
)
