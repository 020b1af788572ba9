"""The exercises of the chapter "Tensor parallelism". Each function is a solution: read it after your own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from book.exercises.check.cost import Talk
from book.exercises.check.exercise import exercise
from book.exercises.check.inputs import Input, Logits, Tokens, Vocabulary
from book.exercises.sharding import EXCHANGED
from lib.devices import Group
from lib.devices.collectives import AllReduce
from lib.devices.pieces import cut
from lib.parallel.sharding.conjugates import copy_to, reduce_from
from lib.parallel.sharding.placement import Replicate, Shard


def mlp_with_biases(x: Tensor, a: Tensor, a_bias: Tensor, b: Tensor, b_bias: Tensor) -> Tensor:
    return F.gelu(x @ a + a_bias) @ b + b_bias


def own_terms(group: Group, x: Tensor, a: Tensor, a_bias: Tensor, b: Tensor) -> Tensor:
    return F.gelu(copy_to(x, group) @ a + a_bias) @ b


@exercise(
    oracle=mlp_with_biases,
    inputs={
        "x": Input("tokens hidden"),
        "a": Input("hidden inner", Shard(1)),
        "a_bias": Input("inner", Shard(0)),
        "b": Input("inner hidden", Shard(0)),
        "b_bias": Input("hidden"),
    },
    returns={"the result": Replicate()},
    gradients=("x", "a", "a_bias", "b", "b_bias"),
    forward=(Talk(AllReduce(), "tokens hidden"),),
    backward=(Talk(AllReduce(), "tokens hidden"),),
    slips={
        "rank 0 alone uses its b_bias, before the sum. The result is right, but the other copies get no gradient and "
        "go stale. Behind the sum every device uses its own.": lambda group, x, a, a_bias, b, b_bias: reduce_from(
            own_terms(group, x, a, a_bias, b) + b_bias * (group.rank == 0), group
        ),
        EXCHANGED: lambda group, x, a, a_bias, b, b_bias: (
            copy_to(F.gelu(reduce_from(x, group) @ a + a_bias) @ b, group) + b_bias
        ),
        "b_bias / P was added before the sum. The result is right, but each copy gets 1/P of its gradient. Add it "
        "whole, behind the sum.": lambda group, x, a, a_bias, b, b_bias: reduce_from(
            own_terms(group, x, a, a_bias, b) + b_bias / group.size, group
        ),
        "copy_to adds up what every device has whole: b_bias, behind the sum, gets its whole gradient without it.": (
            lambda group, x, a, a_bias, b, b_bias: (
                reduce_from(own_terms(group, x, a, a_bias, b), group) + copy_to(b_bias, group)
            )
        ),
        "the gradient of b_bias travels. Behind the sum it is whole on every device, and nothing is sent.": (
            lambda group, x, a, a_bias, b, b_bias: reduce_from(
                own_terms(group, x, a, a_bias, b) + copy_to(b_bias, group) / group.size, group
            )
        ),
    },
    mistakes={
        "b_bias was added before the sum: it counts P times, once per device.": lambda parts, x, a, a_bias, b, b_bias: (
            mlp_with_biases(x, a, a_bias, b, parts * b_bias)
        ),
        "b_bias is missing.": lambda parts, x, a, a_bias, b, b_bias: mlp_with_biases(x, a, a_bias, b, 0),
        "a_bias is missing.": lambda parts, x, a, a_bias, b, b_bias: mlp_with_biases(x, a, 0, b, b_bias),
        "the GeLU is missing.": lambda parts, x, a, a_bias, b, b_bias: (x @ a + a_bias) @ b + b_bias,
        "this is GeLU by its approximation with tanh.": lambda parts, x, a, a_bias, b, b_bias: (
            F.gelu(x @ a + a_bias, approximate="tanh") @ b + b_bias
        ),
        "the GeLU stands after b; it belongs between a and b.": lambda parts, x, a, a_bias, b, b_bias: F.gelu(
            (x @ a + a_bias) @ b + b_bias
        ),
        "this is SiLU; GeLU was asked for.": lambda parts, x, a, a_bias, b, b_bias: F.silu(x @ a + a_bias) @ b + b_bias,
        "this is relu; GeLU was asked for.": lambda parts, x, a, a_bias, b, b_bias: (
            torch.relu(x @ a + a_bias) @ b + b_bias
        ),
    },
    refused={"b has one row more than a has columns": {"b": "inner+1 hidden"}},
    hints=(
        "Begin without the biases: x enters with copy_to, and the result leaves with reduce_from. Which bias is a "
        "piece, which is whole?",
        "a_bias is cut as the columns of a are: add it to your columns. b_bias belongs to the finished sum.",
        "What stands before reduce_from is added up over the devices, what stands behind it is not: "
        "reduce_from(y @ b, group) + b_bias.",
    ),
)
def mlp(group: Group, x: Tensor, a: Tensor, a_bias: Tensor, b: Tensor, b_bias: Tensor) -> Tensor:
    """GeLU(x a + a_bias) b + b_bias: one all-reduce forward, one backward, and all five gradients right.

    x (tokens, hidden) and b_bias (hidden,) are whole; a (hidden, inner/P), a_bias (inner/P,) and b (inner/P, hidden)
    are this device's pieces. Return the whole (tokens, hidden) on every device.
    """
    y = F.gelu(copy_to(x, group) @ a + a_bias)  # (tokens, inner/P)  Shard(1)
    return reduce_from(y @ b, group) + b_bias  # (tokens, hidden)  Partial -> Replicate


def relu_mlp_backward(x: Tensor, a: Tensor, b: Tensor, dz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h = x @ a
    dh = (dz @ b.T) * (h > 0)
    return dh @ a.T, x.T @ dh, torch.relu(h).T @ dz


@exercise(
    oracle=relu_mlp_backward,
    inputs={
        "x": Input("tokens hidden"),
        "a": Input("hidden inner", Shard(1)),
        "b": Input("inner hidden", Shard(0)),
        "dz": Input("tokens hidden"),
    },
    returns={"dx": Replicate(), "da": Shard(1), "db": Shard(0)},
    forward=(Talk(AllReduce(), "tokens hidden"),),
    mistakes={
        "the relu is missing: where x a is not above 0, no gradient comes through.": lambda parts, x, a, b, dz: (
            dz @ b.T @ a.T
        ),
        "da without the relu: where x a is not above 0, no gradient comes through.": lambda parts, x, a, b, dz: (
            x.T @ (dz @ b.T)
        ),
        "where x a is above 0, the gradient comes through as it is: times 1, not times x a.": (
            lambda parts, x, a, b, dz: (dz @ b.T * (x @ a)) @ a.T
        ),
        "where x a is above 0, the gradient comes through as it is: times 1, not times relu(x a).": (
            lambda parts, x, a, b, dz: (dz @ b.T * (x @ a).relu()) @ a.T
        ),
        "the wrong half comes through: the gradient passes where x a is above 0, and is 0 where it is below.": (
            lambda parts, x, a, b, dz: (dz @ b.T * (x @ a < 0)) @ a.T
        ),
        "db is made of what b was multiplied by: relu(x a), not x a.": lambda parts, x, a, b, dz: (x @ a).T @ dz,
    },
    refused={"dz has one row more than x": {"dz": "tokens+1 hidden"}},
    hints=(
        "Go backward through z = y @ b, y = relu(h), h = x @ a, one line each. x @ a is at hand: x is whole, and a is "
        "your piece.",
        "dy = dz @ b.T, then dh = dy * (h > 0): your columns, finished. Two of the three gradients are products of "
        "what you hold.",
        "dx = dh @ a.T sums over the columns of a, of which you hold some: a partial sum. That is the backward of f.",
    ),
)
def mlp_backward(group: Group, x: Tensor, a: Tensor, b: Tensor, dz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The backward of z = relu(x a) b by hand, without autograd: (dx, da, db), with one verb.

    x (tokens, hidden) and dz (tokens, hidden), the gradient of z, are whole; a (hidden, inner/P) and b (inner/P,
    hidden) are this device's pieces. dx is to be whole on every device; da and db are those of the pieces.
    """
    h = x @ a  # (tokens, inner/P)  Shard(1)
    dh = (dz @ b.T) * (h > 0)  # (tokens, inner/P)  Shard(1)
    dx = group.all_reduce(dh @ a.T)  # (tokens, hidden)  Partial -> Replicate
    return dx, x.T @ dh, torch.relu(h).T @ dz


def looked_up(tokens: Tensor, table: Tensor, own: Tensor) -> Tensor:
    return table[tokens]


def summed(given: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The sum of what each device gives, as a function of its rank, the tokens, its rows, and whose they are."""

    def mistake(parts: int, tokens: Tensor, table: Tensor, own: Tensor) -> Tensor:
        pieces = enumerate(zip(cut(table, parts, 0), cut(own, parts, 0), strict=True))
        return sum(given(rank, tokens, rows, mine) for rank, (rows, mine) in pieces)

    return mistake


def rows_or_zeros(local: Tensor, rows: Tensor) -> Tensor:
    here = (local >= 0) & (local < len(rows))
    return rows[local * here] * here.unsqueeze(1)


@exercise(
    oracle=looked_up,
    inputs={  # so many rows that gathering them costs more than what is needed
        "tokens": Tokens("tokens < 7*vocabulary"),
        "table": Input("7*vocabulary hidden", Shard(0)),
        "own": Vocabulary("7*vocabulary", Shard(0)),
    },
    returns={"the rows": Replicate()},
    gradients=("table",),
    forward=(Talk(AllReduce(), "tokens hidden"),),
    mistakes={
        "the tokens of other devices were clamped: every device adds some row to every token. Make it zero.": summed(
            lambda rank, tokens, rows, own: rows[(tokens - own[0]).clamp(0, len(own) - 1)]
        ),
        "a token's number is not its row in the own table: row i belongs to token own[0] + i.": summed(
            lambda rank, tokens, rows, own: rows[tokens.clamp(max=len(rows) - 1)] * torch.isin(tokens, own).unsqueeze(1)
        ),
        "each device looked up every token, modulo its own rows. For tokens of others it is to give zeros.": summed(
            lambda rank, tokens, rows, own: rows[tokens % len(rows)]
        ),
        "the tokens of other devices became 0, and row 0 was added for them. Make it zero.": summed(
            lambda rank, tokens, rows, own: rows[torch.isin(tokens, own) * (tokens - own[0])]
        ),
        "a device's first row is that of own[0]; rank * len(table) only where all have equally many rows.": summed(
            lambda rank, tokens, rows, own: rows_or_zeros(tokens - rank * len(rows), rows)
        ),
    },
    refused={"a token is not in the vocabulary": {"tokens": "tokens < 7*vocabulary+1"}},
    must_refuse=True,
    hints=(
        "Row i of the own table belongs to token own[0] + i. For which tokens does this device have a row? What may it "
        "give for the others, so that a sum over the devices is right?",
        "local = tokens - own[0]; here = (local >= 0) & (local < len(table)). Look up local * here, and multiply the "
        "rows by here.unsqueeze(1). Then reduce_from.",
        "A token that nobody has would become a row of zeros, without a word. The last device knows the largest token "
        "there is: let it raise an IndexError.",
    ),
)
def embed(group: Group, tokens: Tensor, table: Tensor, own: Tensor) -> Tensor:
    """table[tokens] with a table whose rows are cut over the devices: one all-reduce, and nothing backward.

    tokens (tokens,), integers, are the same everywhere; table (vocabulary/P, hidden) are this device's rows, and own
    (vocabulary/P,) the tokens that they belong to, one after the other. Look rows up, do not multiply. Return the whole
    (tokens, hidden) on every device. A token that is not in the vocabulary must raise an error.
    """
    if group.rank == group.size - 1 and tokens.max() > own[-1]:
        raise IndexError(f"token {tokens.max()} is not in a vocabulary of {own[-1] + 1}")
    local = tokens - own[0]
    here = (local >= 0) & (local < len(table))
    rows = table[local * here] * here.unsqueeze(1)  # (tokens, hidden)  Partial: one device has each row
    return reduce_from(rows, group)  # (tokens, hidden)  Replicate


def loss_and_gradient(logits: Tensor, targets: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    loss = F.cross_entropy(logits, targets, reduction="none")
    return loss, logits.softmax(1) - F.one_hot(targets, logits.shape[1])


def target_not_added_up(group: Group, logits: Tensor, targets: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    largest = group.all_reduce(logits.amax(1), op="max")
    exps = (logits - largest.unsqueeze(1)).exp()
    total, hit = group.all_reduce(exps.sum(1)), targets.unsqueeze(1) == own
    return largest + total.log() - (logits * hit).sum(1), exps / total.unsqueeze(1) - hit.to(exps.dtype)


def own_maximum(parts: int, logits: Tensor, targets: Tensor, own: Tensor) -> Tensor:
    total = sum((z - z.amax(1, keepdim=True)).exp().sum(1) for z in cut(logits, parts, 1))
    return cut(logits, parts, 1)[0].amax(1) + total.log() - logits[torch.arange(len(targets)), targets]


@exercise(
    oracle=loss_and_gradient,
    inputs={
        "logits": Logits("tokens 7*vocabulary", Shard(1)),
        "targets": Tokens("tokens < 7*vocabulary"),
        "own": Vocabulary("7*vocabulary", Shard(0)),
    },
    returns={"the loss": Replicate(), "the gradient of the logits": Shard(1)},
    forward=(Talk(AllReduce("max"), "tokens"), Talk(AllReduce(), "tokens"), Talk(AllReduce(), "tokens")),
    slips={
        "the target's logit was not added up over the devices: only the device that has the target knows it.": (
            target_not_added_up
        ),
    },
    mistakes={
        "each device subtracted the maximum of its own logits: exps of different scales were added.": own_maximum,
        "the maximum was subtracted, and not added again.": lambda parts, logits, targets, own: (
            F.cross_entropy(logits, targets, reduction="none") - logits.amax(1)
        ),
        "the logit of the target is missing.": lambda parts, logits, targets, own: logits.logsumexp(1),
        "at the target the gradient is the probability minus 1.": lambda parts, logits, targets, own: logits.softmax(1),
        "this is the softmax over the own columns alone: divide by the sum over all.": lambda parts, z, targets, own: (
            torch.cat([piece.softmax(1) for piece in cut(z, parts, 1)], 1) - F.one_hot(targets, z.shape[1])
        ),
        "this is the gradient of the mean over the tokens; that of the sum was asked for.": (
            lambda parts, logits, targets, own: loss_and_gradient(logits, targets, own)[1] / len(targets)
        ),
    },
    refused={"there is one target more than there are rows of logits": {"targets": "tokens+1 < 7*vocabulary"}},
    hints=(
        "loss = max z + log(sum of exp(z - max z)) - z[target]. Three numbers per token. Which of them does a device "
        "know alone?",
        "The maximum first: group.all_reduce(logits.amax(1), op='max'). Then the sum of exps of the own columns, "
        "all-reduced. The target's logit is on one device: let the others give 0.",
        "hit = targets.unsqueeze(1) == own marks the target among the own columns: (logits * hit).sum(1) is its logit, "
        "or 0. The gradient is exp(z - max z) / sum, minus hit, and needs nothing more from anyone.",
    ),
)
def cross_entropy(group: Group, logits: Tensor, targets: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy of every token, and its gradient, from logits cut along the vocabulary: never gathered.

    logits (tokens, vocabulary/P), around 1000, are this device's columns, and own (vocabulary/P,) the tokens that they
    belong to; targets (tokens,), integers, are the same everywhere. Return the loss (tokens,), on every device, and the
    gradient of its sum, softmax minus one-hot, for the own columns; with three all-reduces of (tokens,).
    """
    largest = group.all_reduce(logits.amax(1), op="max")  # (tokens,)  Replicate
    exps = (logits - largest.unsqueeze(1)).exp()  # (tokens, vocabulary/P)  Shard(1)
    total = group.all_reduce(exps.sum(1))  # (tokens,)  Replicate
    hit = targets.unsqueeze(1) == own  # (tokens, vocabulary/P)  Shard(1)
    wanted = group.all_reduce((logits * hit).sum(1))  # (tokens,)  Replicate: one device has each target
    return largest + total.log() - wanted, exps / total.unsqueeze(1) - hit.to(exps.dtype)
