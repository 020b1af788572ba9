"""What a program's reader tells the types, and asks them: which tensor is of which kind, over which axis."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from lib.devices import Group
from lib.parallel.sharding.placement import Partial, Placement, Replicate, Shard
from lib.parallel.typed.kinds import ENTERED, Kind, PlacementError, from_start, written
from lib.parallel.typed.layouts import kind_over, value_of_layout
from lib.parallel.zero.fully_sharded import pieces_over


class Declared:
    """Kinds of tensors over `axes`, each a group. A tensor has them as long as it lives."""

    def __init__(self, axes: Mapping[str, Group]):
        if not axes:
            raise ValueError("Typed needs at least one axis, such as Typed(tp=group)")
        self.axes = {name: group for name, group in axes.items() if group.size > 1}
        self.names = tuple(axes)
        self.kinds: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.called: WeakIdKeyDictionary = WeakIdKeyDictionary()  # the names of parameters
        self.ends: dict[str, Partial] = {}  # by axis, what sum the gradients are parts of: told by the loss

    def give(self, x: Tensor, **placements: Placement | Kind) -> Tensor:
        """Says how `x` is placed over each axis (Replicate where nothing is said), and returns it. A `Kind` says more:
        `dp=ENTERED` for a parameter whose gradients are summed after the backward."""
        self._known_axes(placements)
        self.kinds[x] = {axis: self._given(x, placements.get(axis, Replicate()), axis) for axis in self.axes}
        return x

    def parameters(self, module: nn.Module, *axes: str, summed_later: tuple[str, ...] = ()) -> nn.Module:
        """Gives every parameter and buffer the kind that its layout says, over `axes`; over the others it is whole.
        Over the axes `summed_later`, its gradients are summed after the backward, as in data parallelism. Experts that
        are divided, and ZeRO's pieces, are known: over the axis of their group they are cut, whatever is said."""
        self._known_axes(dict.fromkeys((*axes, *summed_later)))
        pieces = pieces_over(module)
        with torch._C.DisableTorchFunction():
            for name, x in (*module.named_parameters(), *module.named_buffers()):
                kinds = dict.fromkeys(summed_later, ENTERED)
                for axis, group in self.axes.items():
                    kind = kind_over(module, name, x, group, axis in axes, pieces.get(x))
                    kinds |= {} if kind is None else {axis: kind}
                self.give(x, **kinds)
                self.called[x] = name
        return module

    def of(self, x: Tensor) -> dict[str, Kind]:
        """The kind of `x` over each axis. KeyError for a tensor that the types have never seen."""
        return dict(self.kinds[x])

    def short(self, x: Tensor) -> str:
        """The same in one word, such as "S0|S0 R|R", in the order of the axes."""
        return " ".join(kind.short for kind in self.kinds[x].values())

    def _known_axes(self, named: Mapping[str, Any]) -> None:
        if unknown := named.keys() - set(self.names):
            raise ValueError(f"there is no axis {', '.join(sorted(unknown))}; the axes are {', '.join(self.names)}")

    def _given(self, x: Tensor, placement: Placement | Kind, axis: str) -> Kind:
        with torch._C.DisableTorchFunction():
            needs = x.requires_grad
        if isinstance(placement, Kind):
            return placement if needs else placement.constant
        if isinstance(placement, Shard):
            placement = Shard(from_start(placement.dim, x.dim()))
        elif not isinstance(placement, Partial):
            placement = value_of_layout(placement, self.axes[axis].size)
        grad = Replicate() if isinstance(placement, Replicate | Partial) else placement
        return Kind(placement, grad if needs else None)

    def check_gradients(self, module: nn.Module) -> None:
        """After the backward, before the optimizer's step: PlacementError when a gradient is still a partial sum."""
        for name, x in module.named_parameters():
            if x.grad is not None:
                self.check_gradient(name, x)

    def check_gradient(self, name: str, x: Tensor) -> None:
        """The same of one parameter."""
        for axis, kind in self.of_gradient(x).items():
            if isinstance(kind.value, Partial):
                raise PlacementError(
                    f"the gradient of {name} is {written(kind.value)} over {axis}: a step with it would move the "
                    "copies apart. Sum it first, by average_gradients"
                )

    def name_of(self, x: Tensor) -> str:
        """The name of a parameter, or the shape of what has none."""
        with torch._C.DisableTorchFunction():
            return self.called.get(x) or f"a tensor {tuple(x.shape)}"

    def axes_of(self, ranks: Sequence[int]) -> tuple[str, ...]:
        """The axes that a group of these `ranks` goes over: one, or several together; none for another group."""
        found = [(axis, group.size) for axis, group in self.axes.items() if set(group.ranks) <= set(ranks)]
        return tuple(axis for axis, _ in found) if prod(size for _, size in found) == len(ranks) else ()

    def of_gradient(self, x: Tensor) -> dict[str, Kind]:
        """The kinds of `x.grad`, or of what it was before it left. Partial ones are parts of the loss' own sum."""
        with torch._C.DisableTorchFunction():
            grad = x.grad
        if grad is not None and grad in self.kinds:
            return self.kinds[grad]
        values = {axis: kind.grad or Replicate() for axis, kind in self.kinds[x].items()}
        kinds = {
            axis: Kind(self.ends.get(axis, value) if isinstance(value, Partial) else value)
            for axis, value in values.items()
        }
        if grad is not None:
            self.kinds[grad] = kinds
        return kinds
