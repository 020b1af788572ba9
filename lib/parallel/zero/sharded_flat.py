"""Parameters that exist once, in P pieces: gathered for a while when they are needed, averaged piece by piece."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.devices import Group
from lib.parallel.data.backward import used_anywhere
from lib.parallel.sharding.dense import cut_over
from lib.parallel.sharding.shards import shard
from lib.parallel.zero.careful import Origin, unasked
from lib.parallel.zero.flat import FlatLayout
from lib.parallel.zero.piece import Piece, become_former, become_piece


class Member(NamedTuple):
    """A parameter, its name in the model, and all places where a module holds it: several if it is tied."""

    name: str
    parameter: nn.Parameter
    places: list[tuple[nn.Module, str]]


class ShardedFlat:
    """Parameters of one layer as a flat tensor, of which this device keeps its pieces: in the modules, nowhere else.

    So whatever stands in the modules when the layer is called is what counts, as on one device.
    """

    def __init__(self, members: list[Member], group: Group):
        self.names, self.places = [one.name for one in members], [one.places for one in members]
        self.group = group
        self.layout = FlatLayout([one.parameter.shape for one in members], group)
        self.origins = [
            Origin(one.name, one.parameter.shape, where, group.rank, group.ranks, bool(cut_over(*one.places[0])))
            for one, where in zip(members, self.layout.ranges, strict=True)
        ]
        whole = torch.cat([one.parameter.detach().flatten() for one in members])  # (n,)  Replicate
        pieces = []
        for one, x, origin in zip(members, self.layout.pieces(shard(whole, group, dim=0)), self.origins, strict=True):
            # A copy, since a view would keep the whole alive.
            pieces.append(Piece.make(x.clone(), origin, one.parameter.requires_grad, of=one.parameter))
            become_former(one.parameter, origin)
        self.put(pieces)

    def put(self, tensors: Iterable[Tensor]) -> None:
        """Makes the modules use these for their parameters."""
        for places, x in zip(self.places, tensors, strict=True):
            for owner, name in places:
                owner._parameters[name] = x  # a plain assignment would refuse a tensor that is no nn.Parameter

    def held(self) -> "Held":
        """What the modules hold now. Raises ValueError, naming the parameter, when it cannot be a piece."""
        found: list[Tensor] = []
        with unasked():
            for places, origin in zip(self.places, self.origins, strict=True):
                x, *others = (owner._parameters.get(name) for owner, name in places)
                fault = self._fault(x, others, origin, found)
                if fault:
                    who = f"FullySharded on rank {origin.rank} of {origin.devices}"
                    raise ValueError(f"{who}: {origin.name} {tuple(origin.shape)} {fault}")
                if type(x) is nn.Parameter:
                    become_piece(x, origin)
                found.append(x)
            return Held(self, found, [x._version for x in found])

    def _fault(self, x: Tensor | None, others: list[Tensor | None], origin: Origin, found: list[Tensor]) -> str | None:
        """Why what stands in the place of a parameter is no piece of it."""
        if x is None:
            return "is no parameter of its module any more. Apply weight_norm, prune and the like before sharding"
        if any(x is not other for other in others):
            return "was shared by several modules, and they hold different tensors now. Replace it in all of them"
        if x.shape != (len(origin.where),):
            return f"was replaced by {tuple(x.shape)}; this device's piece has the shape ({len(origin.where)},)"
        if found and x.dtype != found[0].dtype:
            return f"is {x.dtype} now, but {self.names[0]}, which travels with it, is {found[0].dtype}"
        return None


@dataclass(frozen=True, eq=False)
class Held:
    """The pieces that a forward found, and their versions: PyTorch counts the changes in place of each tensor."""

    flat: ShardedFlat
    pieces: list[Tensor]
    versions: list[int]

    @property
    def key(self) -> tuple[int, ...]:
        """The same for the same pieces, unchanged."""
        return (*map(id, self.pieces), *self.versions)

    def gather(self) -> Tensor:
        """(n/P,) Shard(0) -> (n,) Replicate. Raises RuntimeError, by name, when a piece was changed since."""
        with unasked():
            for x, version, origin in zip(self.pieces, self.versions, self.flat.origins, strict=True):
                if x._version != version:
                    raise RuntimeError(
                        f"FullySharded on rank {origin.rank} of {origin.devices}: {origin.name} {tuple(origin.shape)} "
                        "was changed in place (by optimizer.step()?) after the forward whose backward needs it. "
                        "Compute the forward again, or call backward() before step()"
                    )
            mine = torch.cat([x.detach() for x in self.pieces])  # (n/P,)  Shard(0)
        return self.flat.group.all_gather(mine)

    def average(self, grads: list[Tensor | None], allow_unused: bool) -> list[Tensor | None]:
        """Gradients of the parameters, Partial -> the mean gradients of the pieces, Shard(0). Frozen ones have none."""
        flat, group = self.flat, self.flat.group
        who = f"backward of a FullySharded layer on rank {group.rank} of {group.size}"
        train = [x.requires_grad for x in self.pieces]
        here = {name: grad is not None for name, grad, trains in zip(flat.names, grads, train, strict=True) if trains}
        used = used_anywhere(here, group, self.pieces[0].device, allow_unused, who)
        whole = self.pieces[0].new_zeros(sum(flat.layout.sizes))  # (n,)  Partial
        for x, grad, name in zip(flat.layout.tensors(whole), grads, flat.names, strict=True):
            if grad is not None and grad.is_sparse:
                raise TypeError(
                    f"{who}: the gradient of {name} {tuple(x.shape)} is sparse: use nn.Embedding(sparse=False)"
                )
            if grad is not None:
                torch.div(grad, group.size, out=x)
        mine = flat.layout.pieces(group.reduce_scatter(whole))  # each (n_i,)  Shard(0)
        return [x if name in used else None for x, name in zip(mine, flat.names, strict=True)]
