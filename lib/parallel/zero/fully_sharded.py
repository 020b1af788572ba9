"""ZeRO, stage 3, also called fully sharded data parallelism (FSDP): the parameters too exist once, in P pieces.

A layer's parameters are all-gathered when its forward begins and freed when it ends. The backward needs them again, so
they are gathered again, and freed when their gradients have been reduce-scattered. The all-gather is an operation of
the forward like any other, and its backward is the reduce-scatter: see `lib.parallel.sharding.conjugates.all_gather`.
What is special is what the forward saves for the backward: where to get a parameter again (`sharded_layer.py`).
The pieces live in the modules, in the place of the parameters, and nowhere else: load, replace or copy them there.

    FullySharded(model, group, layers=model.blocks)
    optimizer = torch.optim.AdamW(model.parameters())       # after it: the parameters are this device's pieces now
    loss_function(model(x), y).backward()                   # the gradients of the pieces are means over the devices
    optimizer.step()

Rajbhandari et al. 2020, arXiv 1910.02054, sections 5.3 and 7.2.2; Zhao et al. 2023, arXiv 2304.11277, section 3.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from lib.devices import Group
from lib.devices.tensors import has_hooks
from lib.parallel.data.average import check_same_tensors
from lib.parallel.data.backward import trainable
from lib.parallel.zero.piece import Former, Piece
from lib.parallel.zero.sharded_flat import Member
from lib.parallel.zero.sharded_layer import ShardedLayer


class FullySharded:
    """Cuts the parameters of `module` over `group`, in place: each becomes this device's 1-D `Piece`, maybe empty.

    A parameter that only one of `layers` uses is gathered for that layer's time, any other (also one that two layers
    share) for the time of the whole `module`. Layers may be sharded first, each by itself, and then the model around
    them: what is sharded stays as it is. What computes a layer again in the backward must stand around it, not inside:
    checkpoint(layer, x). All devices must call the same layers in the same order.
    Gradients are means over the devices. Where samples are spread unevenly, let each device's loss carry the weight:
    loss * P * samples here / samples in all. `allow_unused` is that of `average_gradients`.

    Communication: for n elements, (P-1)/P n per device in each forward, and 2 (P-1)/P n in each backward (a layer whose
    backward does not need its parameters, such as a first linear one, is not gathered again).
    All devices must begin with the same parameters: raises ValueError that names the first that differs, when a
    parameter has a hook already, and when none requires a gradient.
    """

    def __init__(self, module: nn.Module, group: Group, layers: Iterable[nn.Module] = (), allow_unused: bool = False):
        who = f"FullySharded on rank {group.rank} of {group.size}"
        trainable(module, group, who, may_be_pieces=True)
        self.module, layers = module, list(layers)
        found = _members(module, who)
        check_same_tensors({one.name: one.parameter for one in found} | dict(module.named_buffers()), group)
        inside = [(layer, set(layer.modules())) for layer in layers]
        members: dict[nn.Module, list[Member]] = {}
        for one in found:
            home = next((layer for layer, parts in inside if all(owner in parts for owner, _ in one.places)), module)
            members.setdefault(home, []).append(one)
        for home in (module, *layers):
            if isinstance(home, _Gathering):
                raise ValueError(f"{who}: this {type(home).__name__} is sharded already; once is enough")
        for home in (*layers, *members):
            if home not in set(module.modules()) or type(home).forward is nn.Module.forward:
                raise ValueError(
                    f"{who}: {type(home).__name__} cannot be a layer: each must be a part of the module and have a "
                    "forward of its own, for whose time its parameters are gathered. Of a list pass layers=[*list]"
                )
        for home in dict.fromkeys((module, *members)):
            if home in members or type(home).forward is not nn.Module.forward:
                home._sharded = ShardedLayer(members.get(home, []), group, allow_unused)
                home.__class__ = type(f"FullySharded{type(home).__name__}", (_Gathering, type(home)), {})

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, all parameters are whole, for anything but calling the module: another method, a look at a weight.

        The gradients of what is computed inside reach the pieces. To assign to the whole tensors changes nothing.
        """
        with ExitStack() as stack:
            for layer in _layers(self.module):
                stack.enter_context(layer.gathered())
            yield

    def whole_parameters(self) -> dict[str, Tensor]:
        """That of the module: see below."""
        return whole_parameters(self.module)


def whole_parameters(module: nn.Module) -> dict[str, Tensor]:
    """All parameters of `module` in their shapes, by name, for saving or comparing; also of a copy of a sharded module.

    One all-gather for each layer that was sharded. Replicate.
    """
    whole = {p: p.detach().clone() for p in module.parameters() if not isinstance(p, Piece)}
    for layer in _layers(module):
        for flat in layer.flats:
            held = flat.held()
            whole.update(zip(held.pieces, flat.layout.tensors(held.gather()), strict=True))
    return {name: whole[p] for name, p in module.named_parameters()}


def pieces_over(module: nn.Module) -> dict[Tensor, Group]:
    """Every piece in `module`, and the group over which it was cut."""
    return {x: layer.group for layer in _layers(module) for flat in layer.flats for x in flat.held().pieces}


def _layers(module: nn.Module) -> list[ShardedLayer]:
    return [part._sharded for part in module.modules() if isinstance(part, _Gathering)]


def _members(module: nn.Module, who: str) -> list[Member]:
    """The parameters that are not cut yet."""
    members = {p: Member(name, p, []) for name, p in module.named_parameters() if not isinstance(p, Piece)}
    for owner in module.modules():
        for name, p in owner._parameters.items():
            if p in members:
                members[p].places.append((owner, name))
    for name, p, _ in members.values():
        if isinstance(p, Former):
            raise ValueError(
                f"{who}: {name} is one parameter with {p.origin.name} of a layer that was sharded before, by itself. "
                "Let one call shard all that share it: FullySharded(model, group, layers=[...])"
            )
        if has_hooks(p):
            raise ValueError(
                f"{who}: {name} {tuple(p.shape)} has a hook for its gradient, which no device will have whole. "
                "Register the hook after sharding: it gets the gradient of this device's piece"
            )
    return list(members.values())


class _Gathering:
    """What a sharded module is besides its own class: for the time of a call, its parameters are whole."""

    _sharded: ShardedLayer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._sharded.gathered():  # around the hooks too: weight_norm and spectral_norm are hooks
            return super().__call__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        memo[id(self)] = copy = type(self).__new__(type(self))
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"a {type(self).__name__} holds a group of devices, which no file can: save model.state_dict() on each "
            "device, or whole_parameters(model) once"
        )
