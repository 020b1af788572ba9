"""What operations make without data: shapes, memory and types are those that PyTorch makes on its meta device."""

import pytest
import torch
from torch import nn

from lib.devices import Cluster
from lib.guest.no_data import no_data
from lib.guest.program import guest
from lib.guest.shapes import Shapes

OPERATIONS = {
    "turned": lambda x: x.t(),
    "another shape": lambda x: x.view(2, 6),
    "a piece": lambda x: x[1:, ::2],
    "a piece of a piece": lambda x: x[1:][1:].t(),
    "one row": lambda x: x[2],
    "several pieces": lambda x: x.split(2, 1),
    "all rows": lambda x: x.unbind(),
    "cut loose": lambda x: x.detach(),
    "as it lies": lambda x: x.as_strided((2, 2), (1, 4), 3),
    "wider": lambda x: x[:, :1].expand(3, 5),
    "other numbers of the same bits": lambda x: x.view(torch.int32),
    "sum": lambda x: x + x[0],
    "sum of a turned one": lambda x: x.t() + 1,
    "whole and fraction": lambda x: x.to(torch.float64) / 2,
    "two results": lambda x: torch.var_mean(x, 1),
    "product": lambda x: x @ x.t(),
    "product of pieces": lambda x: x[1:] @ x[1:].t(),
    "with a bias": lambda x: nn.functional.linear(x, x, x[:, 0]),
    "in place": lambda x: x.clone().mul_(2),
    "into another": lambda x: torch.mul(x, 2, out=torch.empty_like(x)),
    "joined": lambda x: torch.cat([x, x[:1]]),
    "nothing in it": lambda x: x[:0] * 2,
}


def described(make, x):
    """All that a program can see of what `make(x)` is, and whether it lies in the memory of `x`."""
    out = make(x)
    return type(out) in (tuple, list), [
        (y.shape, y.stride(), y.storage_offset(), y.dtype, y.untyped_storage().nbytes(),
         y.untyped_storage()._cdata == x.untyped_storage()._cdata)
        for y in (out if isinstance(out, tuple | list) else [out])
    ]  # fmt: skip


def of_all(device):
    return {name: described(make, torch.empty(3, 4, device=device)) for name, make in OPERATIONS.items()}


def test_all_are_those_of_the_meta_device():
    right = of_all("meta")
    assert Cluster(2).run(no_data(guest(lambda: [of_all("cpu"), of_all("cpu")]))) == [[right, right]] * 2


def test_all_devices_of_a_run_ask_once(monkeypatch):
    asked = []
    ask = Shapes.ask
    monkeypatch.setattr(Shapes, "ask", lambda self, func, *rest: asked.append(func) or ask(self, func, *rest))

    def program():
        x = torch.ones(12, 4)
        for piece in x.split(4):  # that they begin elsewhere in memory makes no other sum of them
            piece @ piece

    Cluster(3).run(no_data(guest(program)))
    assert asked.count(torch.ops.aten.mm.default) == 1


def test_each_has_the_gradient_that_it_has_with_data():
    def program():
        w = nn.Parameter(torch.ones(3, 4))
        y = w.t()[1:] * 2
        y.sum().backward()
        return y.requires_grad, w.detach().requires_grad, y._is_view(), w.t()._base is w, w.grad.shape

    (with_data,) = Cluster(1).run(guest(program))
    assert Cluster(1).run(no_data(guest(program))) == [with_data]


def test_what_a_program_puts_elsewhere_stays_there():
    def program():
        x = torch.ones(3, 4)
        y = x.to("meta")
        return [str(z.device) for z in (x + 1, x.t(), y + 1, y.t(), x + 1, x.t())]

    assert Cluster(1).run(no_data(guest(program))) == [["cpu", "cpu", "meta", "meta", "cpu", "cpu"]]


def test_what_does_not_fit_is_refused_each_time():
    def program():
        for _ in range(2):
            with pytest.raises(RuntimeError, match="broadcast"):
                torch.ones(3) + torch.ones(4)
            with pytest.raises(RuntimeError, match="invalid for input of size 12"):
                torch.ones(3, 4).view(5)

    Cluster(1).run(no_data(guest(program)))
