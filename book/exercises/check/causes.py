"""From wrong numbers to the mistake behind them: one small function per mistake, tried in order."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from book.exercises.check.wrong import Wrong, same
from lib.devices.pieces import cut
from lib.parallel.sharding.placement import Shard

CHUNK = "which rounds up: 6 over 4 makes three pieces of 2."


def cause_of(wrong: Wrong) -> str | None:
    """The first mistake that explains the numbers, if any does."""
    if not isinstance(wrong.mine, Tensor):
        return _no_tensor(wrong)
    if wrong.mine.dtype != wrong.right.dtype:
        asked = f"it is {_dtype(wrong.mine)}, and {_dtype(wrong.right)} is asked for"
        return f"{asked}: keep the dtype of the inputs." if wrong.right.is_floating_point() else f"{asked}."
    together = (_times, _partial, _own_piece, _whole, _concatenated, _added, _chunked, _short, _zeros)
    alone = (_transposed, _over_a_dim, _scaled)
    for recognized in (*together, _transposed, _order, *alone[1:], _silent) if wrong.parts > 1 else alone:
        sentence = recognized(wrong)
        if sentence:
            return sentence
    return f"on rank 0, {wrong.what} is right. So look at what differs between the ranks." if wrong.rank else None


def _no_tensor(wrong: Wrong) -> str:
    if wrong.gradient_of:
        return _no_gradient(wrong)
    if wrong.rank:  # the first one that is wrong
        return "only rank 0 has it. gather and reduce give to one device, all_gather and all_reduce to all."
    return "is a return missing?" if wrong.mine is None else "return tensors, one per value asked for."


def _no_gradient(wrong: Wrong) -> str:
    name, have = wrong.gradient_of, [rank for rank, grad in enumerate(wrong.given) if isinstance(grad, Tensor)]
    if not have:
        return f"nothing connects {name} with the result: a detach, or other data in its place?"
    if isinstance(wrong.placement, Shard):
        return f"rank {wrong.rank} did not use its piece of {name}."
    who = f"rank {have[0]} alone uses its copy" if len(have) == 1 else f"only ranks {have} use their copies"
    return f"{who} of {name}, so the other copies get no gradient and go stale. Use it on every device alike."


def _partial(wrong: Wrong) -> str | None:
    if not same(wrong.total, wrong.whole):
        return None
    if wrong.gradient_of:
        return (
            "each device has only its own part of the gradient; together they are right, but nobody added them up. "
            f"{wrong.gradient_of} is used on every device: let it in with copy_to(..., group)."
        )
    return "these are partial sums, and together they are right: nobody added them up (all_reduce)."


def _times(wrong: Wrong) -> str | None:
    if same(wrong.mine, wrong.right * wrong.parts):
        if wrong.gradient_of:
            return f"exactly {wrong.parts} times too large: a gradient that is the same on every device was added up."
        return f"exactly {wrong.parts} times too large: the same value added on every device, or reduced twice?"
    if same(wrong.mine, wrong.right / wrong.parts):
        if wrong.gradient_of:
            return (
                f"exactly {wrong.parts} times too small: {wrong.gradient_of} was divided on the way, or its gradient."
            )
        return f"exactly {wrong.parts} times too small: a mean where the sum is needed?"
    return None


def _own_piece(wrong: Wrong) -> str | None:
    for dim, pieces in wrong.pieces():
        if not same(wrong.mine, pieces[wrong.rank]):
            continue
        if isinstance(wrong.placement, Shard):
            return f"this is a piece along dim {dim}; asked for is one along dim {wrong.placement.dim}."
        return f"this is rank {wrong.rank}'s own piece along dim {dim}. The whole is needed: gather the pieces."
    return None


def _whole(wrong: Wrong) -> str | None:
    if isinstance(wrong.placement, Shard) and same(wrong.mine, wrong.whole):
        return f"this is the whole; each device is to return only its own piece along dim {wrong.placement.dim}."
    return None


def _concatenated(wrong: Wrong) -> str | None:
    for dim in range(min(wrong.mine.ndim, wrong.whole.ndim)):
        if wrong.mine.shape[dim] == wrong.whole.shape[dim] * wrong.parts:
            pieces = cut(wrong.mine, wrong.parts, dim)
            if same(sum(pieces), wrong.whole):
                return f"partial sums were concatenated along dim {dim}; added element by element they are right."
            if all(same(piece, wrong.whole) for piece in pieces):
                return f"this is the whole {wrong.parts} times: every device had all of it before the gather."
    return None


def _added(wrong: Wrong) -> str | None:
    for dim, pieces in wrong.pieces():
        if wrong.mine.shape == pieces[0].shape == pieces[-1].shape and same(wrong.mine, sum(pieces)):
            if isinstance(wrong.placement, Shard) and wrong.gradient_of:
                return (
                    f"the gradients of different pieces were added. {wrong.gradient_of} is this device's own piece; "
                    "copy_to is for what is the same on every device."
                )
            if isinstance(wrong.placement, Shard):
                return "the devices' pieces were added. Each piece was finished: it stays where it is, and is not sent."
            return f"the pieces along dim {dim} were added. They are parts of the result, not terms: concatenate."
    return None


def _chunked(wrong: Wrong) -> str | None:
    if not isinstance(wrong.placement, Shard):
        return None
    pieces = wrong.whole.chunk(wrong.parts, wrong.placement.dim)
    if wrong.rank < len(pieces) and same(wrong.mine, pieces[wrong.rank]):
        return (
            f"these are the sizes of torch.chunk, {CHUNK} Here the first devices have one more: shard(x, group, dim)."
        )
    return None


def _short(wrong: Wrong) -> str | None:
    if wrong.mine.ndim != wrong.right.ndim:
        return None
    for dim in range(wrong.mine.ndim):
        less = wrong.right.shape[dim] - wrong.mine.shape[dim]
        if less > 0 and all(_begins(*both, dim) for both in zip(wrong.given, wrong.expected, strict=True)):
            return f"the last {less} along dim {dim} are missing: length // P drops what does not divide."
    return None


def _zeros(wrong: Wrong) -> str | None:
    """Pieces of length // P, put where they belong in a tensor of zeros."""
    for dim in range(wrong.right.ndim if wrong.mine.shape == wrong.right.shape else 0):
        less = wrong.right.shape[dim] % wrong.parts
        if not less or wrong.mine.narrow(dim, -less, less).any():
            continue
        full = wrong.right.shape[dim] - less
        if same(wrong.mine.narrow(dim, 0, full), wrong.right.narrow(dim, 0, full)):
            return f"the last {less} along dim {dim} are 0: length // P drops what does not divide."
    return None


def _over_a_dim(wrong: Wrong) -> str | None:
    """A sum too few, or one too many."""
    mine, right = wrong.mine, wrong.right
    for dim in range(mine.ndim if mine.ndim == right.ndim + 1 else 0):
        if same(mine.detach().sum(dim), right):
            return f"these are terms: added up over dim {dim} they are right."
    for dim in range(right.ndim if mine.ndim == right.ndim - 1 else 0):
        for done, reduced in (("added up", right.sum(dim)), ("averaged", right.double().mean(dim))):
            if same(mine, reduced):
                return f"the right numbers, {done} over dim {dim}: the shape {tuple(right.shape)} is asked for."
    return None


def _scaled(wrong: Wrong) -> str | None:
    mine, right = wrong.mine.detach(), wrong.right
    if mine.shape != right.shape or not right.is_floating_point() or right.count_nonzero() < 2:
        return None
    factor = float((mine * right).sum() / right.square().sum())
    if not factor or not same(mine, factor * right):
        return None
    if f"{factor:.9g}" == "-1":
        return "the sign is turned."
    return f"all numbers are {factor:.4g} times what they should be: a factor too many, or one is missing."


def _begins(mine: Any, right: Tensor, dim: int) -> bool:
    """Whether one tensor is the beginning of the other along `dim`."""
    if not isinstance(mine, Tensor) or mine.ndim != right.ndim or mine.shape[dim] > right.shape[dim]:
        return False
    return same(mine, right.narrow(dim, 0, mine.shape[dim]))


def _order(wrong: Wrong) -> str | None:
    if wrong.mine.numel() != wrong.right.numel():
        return None
    if not same(wrong.mine.detach().flatten().sort().values, wrong.right.flatten().sort().values):
        return None
    for (dim, pieces), other in itertools.product(wrong.pieces(), range(wrong.whole.ndim)):
        joins = dim != other and len({piece.shape for piece in pieces}) == 1
        if joins and same(wrong.mine, torch.cat(pieces, other)):
            return f"the right pieces, joined along dim {other} instead of dim {dim}."
    for dim, pieces in wrong.pieces():
        if wrong.mine.shape == wrong.right.shape and len(pieces) <= 4:
            for order in itertools.permutations(range(wrong.parts)):
                if same(wrong.mine, torch.cat([pieces[r] for r in order], dim)):
                    return f"the right pieces along dim {dim} in the wrong order: {list(order)} instead of rank order."
    return "the right numbers in the wrong places: interleaved, or reshaped instead of concatenated?"


def _transposed(wrong: Wrong) -> str | None:
    if wrong.mine.ndim == 2 and same(wrong.mine.T, wrong.right):
        return "this is the transpose of the right answer."
    asked = f"the right numbers, but the shape {tuple(wrong.right.shape)} is asked for"
    if wrong.mine.ndim == wrong.right.ndim <= 4:
        for dims in itertools.permutations(range(wrong.mine.ndim)):
            if same(wrong.mine.permute(dims), wrong.right):
                return f"{asked}: two dims or more are exchanged."
    if wrong.mine.ndim != wrong.right.ndim and same(wrong.mine.flatten(), wrong.right.flatten()):
        return f"{asked}."
    return None


def _silent(wrong: Wrong) -> str | None:
    return None if wrong.sent else "no device sent anything, so none can know what the others computed."


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
