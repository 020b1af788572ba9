"""Parameters that travel together in ZeRO's stages 1 and 2, and this device's pieces of them."""

from collections.abc import Container

import torch
from torch import Tensor, nn

from lib.devices import Group
from lib.parallel.data.buckets import pack
from lib.parallel.sharding.shards import shard
from lib.parallel.zero.careful import Origin
from lib.parallel.zero.flat import FlatLayout
from lib.parallel.zero.piece import Piece


class Bucket:
    """Parameters that travel together: the flat tensor that they are views of, and this device's pieces."""

    def __init__(
        self, parameters: list[nn.Parameter], names: dict[nn.Parameter, str], group: Group, cut: Container[str] = ()
    ):
        self.parameters = parameters
        self.layout = FlatLayout([p.shape for p in parameters], group)
        self.flat = torch.cat([p.detach().flatten() for p in parameters])  # (n,)  Replicate
        self.hold(names, "ShardedOptimizer")
        self.mine = shard(self.flat, group, dim=0)  # (n/P,)  Shard(0), a view: stepping a piece writes into `flat`
        mine = zip(parameters, self.layout.pieces(self.mine), self.layout.ranges, strict=True)
        self.pieces = {
            p: Piece.make(x, Origin(names[p], p.shape, where, group.rank, group.ranks, names[p] in cut), of=p)
            for p, x, where in mine
        }

    @torch.no_grad()
    def hold(self, names: dict[nn.Parameter, str], who: str) -> None:
        """The module computes with the memory of `flat`. Whoever gave a parameter other memory meant its values."""
        for p, view in zip(self.parameters, self.layout.tensors(self.flat), strict=True):
            if (p.shape, p.dtype, p.device) != (view.shape, view.dtype, view.device):
                raise ValueError(
                    f"{who}: {names[p]} was {tuple(view.shape)} {view.dtype} on {view.device} when its optimizer was "
                    f"made, and is {tuple(p.shape)} {p.dtype} on {p.device}. Change the model before ShardedOptimizer"
                )
            if _place(p) != _place(view):
                view.copy_(p)
                p.data = view

    def add(self, mine: Tensor, used: set[nn.Parameter]) -> None:
        """(n/P,) Shard(0), to the gradients of the pieces; a parameter that nobody used stays without."""
        for (p, piece), grad in zip(self.pieces.items(), self.layout.pieces(mine), strict=True):
            if p in used:
                piece.grad = grad if piece.grad is None else piece.grad.add_(grad)


def take(parameters: list[nn.Parameter], share: float) -> Tensor:
    """Their gradients times `share`, flat (n,). The parameters have none any more."""
    flat = pack(parameters, share)
    for p in parameters:
        p.grad = None
    return flat


def check_reduced(names: dict[nn.Parameter, str], who: str) -> None:
    """ValueError where a gradient is still whole, so that a step would leave it out."""
    whole = [name for p, name in names.items() if p.grad is not None]
    if whole:
        raise ValueError(
            f"{who}: {', '.join(whole[:3])} still has its whole gradient, of which the pieces know nothing. Call "
            "reduce_gradients() after backward(), or put it inside `with zero.reducing():`"
        )


def check_cleared(used_up: list[nn.Parameter], who: str) -> None:
    """ValueError where new gradients would be added to those of a step that was made, of these pieces."""
    if any(piece.grad is not None for piece in used_up):
        raise ValueError(
            f"{who}: the pieces have the gradients of the last step. Call zero_grad() of this optimizer before the "
            "next one; that of the module does not know the pieces"
        )


def _place(x: Tensor) -> tuple:
    return x.untyped_storage()._cdata, x.storage_offset(), x.stride()
