"""Parameters that exist once, in P pieces: gathered for a while when they are needed, averaged piece by piece."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.devices import Group
from lib.parallel.data.backward import used_anywhere
from lib.parallel.sharding.shards import shard
from lib.parallel.zero.flat import FlatLayout


class Member(NamedTuple):
    """A parameter, its name in the model, and all places where a module holds it: several if it is tied."""

    name: str
    parameter: nn.Parameter
    places: list[tuple[nn.Module, str]]


class ShardedFlat:
    """Parameters of one layer as a flat tensor, of which this device keeps its pieces."""

    def __init__(self, members: list[Member], group: Group):
        self.names, self.places = [one.name for one in members], [one.places for one in members]
        self.group = group
        self.layout = FlatLayout([one.parameter.shape for one in members], group)
        self.trains = members[0].parameter.requires_grad
        whole = torch.cat([one.parameter.detach().flatten() for one in members])  # (n,)  Replicate
        mine = self.layout.pieces(shard(whole, group, dim=0))
        self.pieces = [nn.Parameter(x.clone(), self.trains) for x in mine]  # a view would keep the whole alive
        self.put(self.pieces)

    def put(self, tensors: Iterable[Tensor]) -> None:
        """Makes the modules use these for their parameters."""
        for places, x in zip(self.places, tensors, strict=True):
            for owner, name in places:
                owner._parameters[name] = x  # a plain assignment would refuse a tensor that is no nn.Parameter

    def gather(self) -> Tensor:
        """(n/P,) Shard(0) -> (n,) Replicate."""
        return self.group.all_gather(torch.cat([piece.detach() for piece in self.pieces]))

    def average(self, grads: list[Tensor | None], allow_unused: bool) -> list[Tensor | None]:
        """Gradients of the parameters, Partial -> the mean gradients of the pieces, Shard(0)."""
        who = f"backward of a FullySharded layer on rank {self.group.rank} of {self.group.size}"
        here = {name: grad is not None for name, grad in zip(self.names, grads, strict=True)}
        used = used_anywhere(here, self.group, self.pieces[0].device, allow_unused, who)
        flat = self.pieces[0].new_zeros(sum(self.layout.sizes))  # (n,)  Partial
        for x, grad, name in zip(self.layout.tensors(flat), grads, self.names, strict=True):
            if grad is not None and grad.is_sparse:
                raise TypeError(
                    f"{who}: the gradient of {name} {tuple(x.shape)} is sparse: use nn.Embedding(sparse=False)"
                )
            if grad is not None:
                torch.div(grad, self.group.size, out=x)
        mine = self.layout.pieces(self.group.reduce_scatter(flat))
        return [x if name in used else None for x, name in zip(mine, self.names, strict=True)]
