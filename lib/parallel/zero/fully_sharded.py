"""ZeRO, stage 3, also called fully sharded data parallelism (FSDP): the parameters too exist once, in P pieces.

A layer's parameters are all-gathered when its forward begins and freed when it ends. The backward needs them again, so
they are gathered again, and freed when their gradients have been reduce-scattered. The all-gather is an operation of
the forward like any other, and its backward is the reduce-scatter: see `lib.parallel.sharding.conjugates.all_gather`.
All that is special here is what the forward saves for the backward: not a gathered parameter, but where to get it.

    FullySharded(model, group, layers=model.blocks)
    optimizer = torch.optim.AdamW(model.parameters())       # after it: the parameters are this device's pieces now
    loss_function(model(x), y).backward()                   # the gradients of the pieces are means over the devices
    optimizer.step()

Rajbhandari et al. 2020, arXiv 1910.02054, sections 5.3 and 7.2.2; Zhao et al. 2023, arXiv 2304.11277, section 3.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from lib.devices import Group
from lib.parallel.data.average import check_same_parameters
from lib.parallel.data.backward import trainable
from lib.parallel.zero.sharded_flat import Member, ShardedFlat


class FullySharded:
    """Cuts the parameters of `module` over `group`, in place: each becomes this device's 1-D piece, maybe empty.

    A parameter that only one of `layers` uses is gathered for that layer's time, any other (also one that two layers
    share) for the time of the whole `module`. All devices must call the same layers in the same order.
    Gradients are means over the devices. Where samples are spread unevenly, let each device's loss carry the weight:
    loss * P * samples here / samples in all. `allow_unused` is that of `average_gradients`.

    Communication: for n elements, (P-1)/P n per device in each forward, and 2 (P-1)/P n in each backward (a layer whose
    backward does not need its parameters, such as a first linear one, is not gathered again).
    All devices must begin with the same parameters: raises ValueError that names the first that differs, and when no
    parameter requires a gradient.
    """

    def __init__(self, module: nn.Module, group: Group, layers: Iterable[nn.Module] = (), allow_unused: bool = False):
        who = f"FullySharded on rank {group.rank} of {group.size}"
        trainable(module, who)
        check_same_parameters(module, group)
        layers = list(layers)
        inside = [(layer, set(layer.modules())) for layer in layers]
        members: dict[nn.Module, list[Member]] = {}
        for one in _members(module):
            home = next((layer for layer, parts in inside if all(owner in parts for owner, _ in one.places)), module)
            members.setdefault(home, []).append(one)
        for home in (*layers, *members):
            if home not in set(module.modules()) or type(home).forward is nn.Module.forward:
                raise ValueError(
                    f"{who}: {type(home).__name__} cannot be a layer: each must be a part of the module and have a "
                    "forward of its own, for whose time its parameters are gathered. Of a list pass layers=[*list]"
                )
        self._names = [name for name, _ in module.named_parameters()]
        self._layers = [ShardedLayer(home, those, group, allow_unused) for home, those in members.items()]

    def whole_parameters(self) -> dict[str, Tensor]:
        """All parameters in their shapes, by name, for saving or comparing: one all-gather per layer. Replicate."""
        whole: dict[str, Tensor] = {}
        for flat in (flat for layer in self._layers for flat in layer.flats):
            whole.update(zip(flat.names, flat.layout.tensors(flat.gather()), strict=True))
        return {name: whole[name] for name in self._names}


def _members(module: nn.Module) -> list[Member]:
    members = {p: Member(name, p, []) for name, p in module.named_parameters()}
    for owner in module.modules():
        for name, p in owner._parameters.items():
            if p is not None:
                members[p].places.append((owner, name))
    return list(members.values())


class ShardedLayer:
    """A module that holds pieces, and gathers whole parameters for the time of its forward and of its backward."""

    def __init__(self, module: nn.Module, members: list[Member], group: Group, allow_unused: bool):
        kinds: dict[tuple, list[Member]] = {}
        for one in members:  # frozen ones apart, since they have no gradient to reduce-scatter
            kinds.setdefault((one.parameter.requires_grad, one.parameter.dtype), []).append(one)
        self.flats = [ShardedFlat(those, group) for those in kinds.values()]
        self.allow_unused = allow_unused
        self.again: dict[ShardedFlat, Tensor] = {}  # gathered by the backward, until it ends
        dense_forward = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with self._gathered():
                return dense_forward(*args, **kwargs)

        module.forward = forward

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        whole = iter(_Gather.apply(self, *(piece for flat in self.flats for piece in flat.pieces)))
        with ExitStack() as stack:
            for flat in self.flats:
                tensors = [next(whole) for _ in flat.names]
                stack.enter_context(self._regathering(flat, tensors[0]))
                stack.callback(flat.put, flat.pieces)
                flat.put(tensors)
            yield

    def _regathering(self, flat: ShardedFlat, gathered: Tensor) -> saved_tensors_hooks:
        """While entered, what is saved of the storage of `gathered` is only where it lies; a backward that wants it
        gathers `flat` again. All else is saved as it would be outside: by the hooks there, if any."""
        storage = gathered.untyped_storage()._cdata
        keep, give = torch._C._autograd._top_saved_tensors_default_hooks(False) or (_keep, _give)

        def pack(x: Tensor) -> Any:
            if x.untyped_storage()._cdata == storage:
                return Cut(flat, x.shape, x.stride(), x.storage_offset())
            return keep(x)

        def unpack(kept: Any) -> Tensor:
            if isinstance(kept, Cut) and kept.flat is flat:
                return self.whole(flat).as_strided(kept.shape, kept.stride, kept.offset)
            return give(kept)

        return saved_tensors_hooks(pack, unpack)

    def whole(self, flat: ShardedFlat) -> Tensor:
        """(n,) Replicate. A backward keeps it for its next operations, until the gradients of this layer are there."""
        in_backward = torch._C._current_graph_task_id() != -1
        if not in_backward:
            self.again.clear()  # a backward that did not come to its end may have left something
            return flat.gather()
        whole = self.again.get(flat)
        if whole is None:
            whole = flat.gather()
        if any(other.trains for other in self.flats):  # else no gradient of ours would tell when to free it
            self.again[flat] = whole
        return whole


class _Gather(Function):
    """Forward: all-gather, the pieces of a layer -> its whole parameters. Backward: reduce-scatter of the gradients."""

    @staticmethod
    def forward(ctx, layer, *pieces):
        ctx.layer = layer
        ctx.set_materialize_grads(False)  # None, not zeros, for what the loss does not depend on
        whole = [flat.layout.tensors(layer.whole(flat)) for flat in layer.flats]
        frozen = [tensors for flat, tensors in zip(layer.flats, whole, strict=True) if not flat.trains]
        ctx.mark_non_differentiable(*chain(*frozen))
        return tuple(chain(*whole))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        layer, grads = ctx.layer, iter(grads)
        layer.again.clear()  # every operation that needed them has run
        found = [None]
        for flat in layer.flats:
            mine = [next(grads) for _ in flat.names]
            found += flat.average(mine, layer.allow_unused) if flat.trains else mine
        return tuple(found)


class Cut(NamedTuple):
    """Where a tensor lies in the gathered `flat`: what is saved instead of it."""

    flat: ShardedFlat
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


def _keep(x: Tensor) -> tuple[Tensor, int]:
    return x, x._version


def _give(kept: tuple[Tensor, int]) -> Tensor:
    x, version = kept
    if x._version != version:  # PyTorch does not check this behind hooks
        raise RuntimeError(f"a tensor of shape {tuple(x.shape)} that the backward needs was changed in place since")
    return x
