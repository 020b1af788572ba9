"""The exercises of the chapter "Column and row sharding". Each function is a solution: read it after your own."""

from __future__ import annotations

import torch
from torch import Tensor

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input
from lib.devices import Group
from lib.devices.collectives import AllGather, AllReduce
from lib.parallel.sharding.conjugates import copy_to, reduce_from
from lib.parallel.sharding.placement import Replicate, Shard
from lib.parallel.sharding.shards import shard


def product(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


@exercise(
    oracle=product,
    inputs={"x": Input("batch in"), "w": Input("in out")},
    returns={"the result": Replicate()},
    forward=(Talk(AllGather(dim=1), "batch out"),),
    parts={"w": Shard(1)},
    empty=True,
    refused={"x has one column more than w has rows": {"x": "batch in+1"}},
    hints=(
        "Each device multiplies the whole x by its own columns of w. Which dim of w are the columns?",
        "shard(w, group, dim=1) is this device's piece, and costs nothing. Its product has shape (batch, out/P): some "
        "columns of the result, finished. Nothing is left to add.",
        "group.all_gather(y, dim=...) concatenates the pieces of all devices. Along which dim do the columns of y lie?",
    ),
)
def column_forward(group: Group, x: Tensor, w: Tensor) -> Tensor:
    """x @ w with w cut by columns; the whole result on every device, in one all-gather.

    x (batch, in) and w (in, out) are whole on every device. Multiply only this device's columns, then put the pieces
    together. Not every device need have equally many columns, and some may have none.
    """
    y = x @ shard(w, group, dim=1)  # (batch, out/P)  Shard(1)
    return group.all_gather(y, dim=1)  # (batch, out)    Replicate


def product_and_bias(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return x @ w + bias


def own_terms(group: Group, x: Tensor, w: Tensor) -> Tensor:
    return shard(x, group, dim=1) @ shard(w, group, dim=0)


@exercise(
    oracle=product_and_bias,
    inputs={"x": Input("batch in"), "w": Input("in out"), "bias": Input("out")},
    returns={"the result": Replicate()},
    gradients=("bias",),
    forward=(Talk(AllReduce(), "batch out"),),
    parts={"x": Shard(1), "w": Shard(0)},
    empty=True,
    slips={
        "the bias was added before the sum, and a bare verb loses its gradient. Behind the sum it counts once.": (
            lambda group, x, w, bias: group.all_reduce(own_terms(group, x, w) + bias)
        ),
        "rank 0 alone uses its bias, before the sum. The result is right, but the other copies get no gradient and "
        "go stale. Behind the sum every device uses its own.": lambda group, x, w, bias: reduce_from(
            own_terms(group, x, w) + bias * (group.rank == 0), group
        ),
        "bias / P was added before the sum. The result is right, but each copy gets 1/P of its gradient. Add it "
        "whole, behind the sum.": lambda group, x, w, bias: reduce_from(
            own_terms(group, x, w) + bias / group.size, group
        ),
    },
    mistakes={
        "the bias is missing.": lambda parts, x, w, bias: x @ w,
        "the bias was added before the sum: it counts P times, once per device.": lambda parts, x, w, bias: (
            x @ w + parts * bias
        ),
    },
    refused={"x has one column more than w has rows": {"x": "batch in+1"}},
    hints=(
        "Row i of w is only ever multiplied by column i of x. So whoever holds some rows of w needs which part of x?",
        "shard(x, group, dim=1) @ shard(w, group, dim=0) has the full shape (batch, out), but only some of the terms "
        "of each sum. all_reduce adds the terms of all devices.",
        "What is added before the all_reduce counts once per device. Where must the bias go, to count once everywhere, "
        "and to get its whole gradient on every device?",
    ),
)
def row_forward(group: Group, x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """x @ w + bias with w cut by rows; the whole result on every device, in one all-reduce.

    x (batch, in), w (in, out) and bias (out,) are whole on every device. Multiply only this device's rows, by the part
    of x that belongs to them. The bias is trained: every device must get its whole gradient. (x and w are not.)
    """
    y = shard(x, group, dim=1) @ shard(w, group, dim=0)  # (batch, out)  Partial
    return group.all_reduce(y) + bias  # (batch, out)  Replicate


def product_backward(x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return dy @ w.T, x.T @ dy


@exercise(
    oracle=product_backward,
    inputs={"x": Input("batch in"), "w": Input("in out", Shard(1)), "dy": Input("batch out", Shard(1))},
    returns={"dx": Replicate(), "dw": Shard(1)},
    empty=True,
    forward=(Talk(AllReduce(), "batch in"),),
    refused={"dy has one row more than x": {"dy": "batch+1 out"}},
    hints=(
        "On one device dx = dy @ w.T and dw = x.T @ dy. Write both with the pieces you hold, and look at the shapes.",
        "dw is finished: x.T @ dy has the shape of this device's columns of w. But dx has the full shape, and sums "
        "over the columns, of which this device holds only some.",
        "dx is a partial sum. Forward, every device used the same x; backward, the gradients of all uses are added.",
    ),
)
def column_backward(group: Group, x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The backward of y = x @ w cut by columns, by hand: (dx, dw).

    x (batch, in) is whole; w (in, out/P) and dy (batch, out/P), the gradient of y, are this device's columns. Return
    dx (batch, in), whole on every device, and dw (in, out/P), this device's columns: two products and one verb.
    """
    dx = dy @ w.T  # (batch, in)  Partial: the sum runs over this device's columns only
    dw = x.T @ dy  # (in, out/P)  Shard(1)
    return group.all_reduce(dx), dw


EXCHANGED = (
    "copy_to and reduce_from are exchanged: copy_to is for what goes in, the same on every device, and reduce_from for "
    "the terms that come out."
)


def relu_between(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.relu(x @ a) @ b


@exercise(
    oracle=relu_between,
    inputs={"x": Input("batch in"), "a": Input("in hidden", Shard(1)), "b": Input("hidden out", Shard(0))},
    returns={"the result": Replicate()},
    gradients=("x", "a", "b"),
    empty=True,
    forward=(Talk(AllReduce(), "batch out"),),
    backward=(Talk(AllReduce(), "batch in"),),
    slips={
        EXCHANGED: lambda group, x, a, b: copy_to(torch.relu(reduce_from(x, group) @ a) @ b, group),
        "relu was applied to partial sums: after b there is none.": lambda group, x, a, b: reduce_from(
            torch.relu(torch.relu(copy_to(x, group) @ a) @ b), group
        ),
        "different columns of x @ a were added up over the devices. They are finished: nothing is sent there.": (
            lambda group, x, a, b: reduce_from(torch.relu(reduce_from(copy_to(x, group) @ a, group)) @ b, group)
        ),
        "different columns of relu(x @ a) were added up over the devices. They are finished: nothing is sent there.": (
            lambda group, x, a, b: reduce_from(reduce_from(torch.relu(copy_to(x, group) @ a), group) @ b, group)
        ),
    },
    mistakes={
        "the relu is missing.": lambda parts, x, a, b: x @ a @ b,
        "this is GeLU; relu was asked for.": lambda parts, x, a, b: torch.nn.functional.gelu(x @ a) @ b,
        "the relu stands after b; it belongs between a and b.": lambda parts, x, a, b: torch.relu(x @ a @ b),
        "one relu too many: after b there is none.": lambda parts, x, a, b: torch.relu(torch.relu(x @ a) @ b),
    },
    refused={"b has one row more than a has columns": {"b": "hidden+1 out"}},
    hints=(
        "The columns of x @ a that a device computes are exactly those that its rows of b need. Must anything be sent "
        "between the two products?",
        "relu acts on each element alone, so it may act on a piece. After b come partial sums: one all-reduce. "
        "Verbs lose gradients; lib.parallel has reduce_from(y, group), which keeps them.",
        "Each device sees only its own part of x's gradient. copy_to(x, group) does nothing forward and adds the parts "
        "backward.",
    ),
)
def two_layers(group: Group, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """relu(x @ a) @ b with a cut by columns and b by rows: one all-reduce forward, one backward.

    x (batch, in) is whole; a (in, hidden/P) and b (hidden/P, out) are this device's pieces. Return the whole
    (batch, out) on every device, so that the gradients of x, a and b are right as well.
    """
    x = copy_to(x, group)  # (batch, in)        Replicate
    h = torch.relu(x @ a)  # (batch, hidden/P)  Shard(1)
    return reduce_from(h @ b, group)  # (batch, out)  Partial -> Replicate
