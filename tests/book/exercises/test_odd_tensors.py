"""Tensors that cannot be compared, and what stands behind them: each kind of exercise says so in a sentence."""

import importlib
import pkgutil
from functools import wraps

import pytest
import torch
from torch import Tensor

from book import exercises
from book.exercises import guest, sharding
from book.exercises.check.exercise import Exercise, exercise
from book.exercises.check.inputs import Input
from book.exercises.check.shown import Shown
from lib import Replicate

ODD = {
    "is on device 'meta'": lambda x: x.to("meta"),
    "has the layout sparse_coo": lambda x: x.to_sparse(),
    "has the layout sparse_csr": lambda x: (x if x.ndim == 2 else x.reshape(1, -1)).to_sparse_csr(),
    "is quantized": lambda x: torch.quantize_per_tensor(x.detach().float(), 0.1, 0, torch.qint8),
    "is nested": lambda x: torch.nested.nested_tensor([x.detach().double()]),
    "is float8_e4m3fn": lambda x: x.to(torch.float8_e4m3fn),
    "bool": lambda x: x.bool(),
    "complex128": lambda x: x.to(torch.complex128),
    "a sum": lambda x: x.sum(),
}


def all_tasks() -> list[Shown]:
    rooms = [
        importlib.import_module(f"book.exercises.{room.name}") for room in pkgutil.iter_modules(exercises.__path__)
    ]
    found = {id(task): task for room in rooms for task in vars(room).values() if isinstance(task, Shown)}
    return sorted(found.values(), key=lambda task: task.name)


def changed(given, change):
    """The answer, its tensors and numbers changed."""
    if isinstance(given, list | tuple):
        return type(given)(changed(each, change) for each in given)
    if isinstance(given, dict):
        return {name: changed(value, change) for name, value in given.items()}
    given = torch.tensor(given) if type(given) in (int, float) else given
    return change(given) if isinstance(given, Tensor) else given


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", all_tasks(), ids=lambda task: task.name)
def test_each_gets_a_verdict_that_names_it(task):
    for told, change in ODD.items():

        @wraps(task.solution)
        def program(*given, change=change):
            return changed(task.solution(*given), change)

        verdict = task.verdict(program)
        assert verdict.state != "waiting", told
        names_it = told in str(verdict) or told == "a sum"
        if isinstance(task, Exercise):
            assert names_it
        elif told.startswith(("is ", "has ")) and not verdict.passed:  # some answer in words alone
            assert names_it or "not connected" in str(verdict)


@exercise(
    oracle=lambda w: w.clone(),
    inputs={"w": Input("rows columns")},
    returns={"the rows": Replicate()},
    gradients=("w",),
    hints=("a", "b", "c"),
)
def all_rows(group, w):
    """All rows of w."""
    return w + 0


def test_a_sparse_gradient_is_as_good_as_a_dense_one():
    def looked_up(group, w):
        return torch.nn.functional.embedding(torch.arange(len(w)), w, sparse=True)

    assert all_rows.check(looked_up).passed
    assert not all_rows.check(lambda group, w: 2 * looked_up(group, w)).passed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda loss: loss.to(torch.complex128), "it returned a complex number"),
        (lambda loss: loss.detach().requires_grad_(), "is not connected with `losses`"),
        (lambda loss: loss.to("meta"), "it returned a tensor that is on device 'meta'"),
    ],
)
def test_a_loss_from_which_no_way_leads_back(change, says):
    said = str(guest.loss_for_ddp.check(lambda losses: change(guest.loss_for_ddp.solution(losses))))
    assert says in said


def cannot(group, x, w):
    return torch.ones(2, device="meta").to("cpu")


def test_what_pytorch_has_not_implemented_is_no_stub():
    said = str(sharding.column_forward.check(cannot))
    assert "NotImplementedError: Cannot copy out of meta tensor" in said
    assert "line" in said
