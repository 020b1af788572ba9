"""From the weights of one device to the shards of P, and back.

Every parallel layer has the parameters of its dense self, under the same names, and says in `layout` how each is cut.
What has no layout is replicated. Buffers, such as the statistics of a BatchNorm, are treated like parameters, unless
they are said to be no part of the state (`persistent=False`).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lib.devices import Group
from lib.parallel.sharding.placement import Placement, Replicate


def load_dense(module: nn.Module, state: Mapping[str, Tensor], group: Group) -> None:
    """Copies this device's pieces of a dense state dict into `module`, whose layers are split over `group`.

    The dense state is that of the same module on one device. Raises ValueError, and changes nothing, when a weight is
    missing, unknown, or of another shape.
    """
    mine = _named(module)
    missing, unknown = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
    if missing or unknown:
        raise ValueError(
            f"load_dense on rank {group.rank} of {group.size}: "
            + "; ".join(
                f"{what}: {', '.join(names)}"
                for what, names in (("missing in the state", missing), ("unknown to the module", unknown))
                if names
            )
        )
    pieces = {}
    for name, parameter in mine.items():
        try:
            pieces[name] = layout_of(module, name).piece(state[name].detach(), group.size, group.rank)
        except ValueError as error:
            raise ValueError(f"load_dense on rank {group.rank} of {group.size}: {name}: {error}") from None
        if pieces[name].shape != parameter.shape:
            raise ValueError(
                f"load_dense on rank {group.rank} of {group.size}: {name} of shape {tuple(state[name].shape)} gives "
                f"this device a piece of {tuple(pieces[name].shape)}, but the module has {tuple(parameter.shape)} there"
            )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(pieces[name])


@torch.no_grad()
def draw_dense(
    module: nn.Module, shapes: Mapping[str, Sequence[int]], group: Group, deviation: Callable[[str], float]
) -> None:
    """Gives `module` random weights: matrices are normal, of a `deviation` by name; norms are 1 and biases 0.

    `shapes` are those of the dense weights, by name. Every device draws all of them, one after the other, and keeps its
    pieces: so the weights are the same on any number of devices.
    """
    parameters = dict(module.named_parameters())
    for name, shape in shapes.items():
        mine = parameters[name]
        if len(shape) == 1:
            mine.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        dense = torch.empty(shape, dtype=mine.dtype, device=mine.device).normal_(std=deviation(name))
        mine.copy_(layout_of(module, name).piece(dense, group.size, group.rank))


def dense_state(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The state dict of the dense module, from the modules of all devices in rank order. For use outside of a program.

    Raises ValueError when copies that must be equal are not.
    """
    state = {}
    everyone = [_named(module) for module in modules]
    for name in everyone[0]:
        pieces = [named[name].detach() for named in everyone]
        layout = layout_of(modules[0], name)
        state[name] = layout.whole(pieces)
        for rank, piece in enumerate(pieces):
            if not equal_copies(layout.piece(state[name], len(pieces), rank), piece):
                raise ValueError(f"dense_state: {name} on rank {rank} differs from the copies of it on other devices")
    return state


def equal_copies(x: Tensor, y: Tensor) -> bool:
    """Whether all elements are the same, of which some may be no numbers: what has diverged is still a copy."""
    return x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)


def _named(module: nn.Module) -> dict[str, Tensor]:
    """All parameters, and the buffers that are a part of its state."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    passing = {  # buffers that no state holds
        f"{owner}.{name}".lstrip(".")
        for owner, part in module.named_modules(remove_duplicate=False)
        for name in part._non_persistent_buffers_set
    }
    buffers = module.named_buffers(remove_duplicate=False)
    return parameters | {name: buffer for name, buffer in buffers if name not in passing}


def layout_of(module: nn.Module, name: str) -> Placement:
    """How the parameter or buffer `name` of `module` is cut, such as `Shard(0)`."""
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), "layout", {}).get(leaf, Replicate())


def cut_over(layer: nn.Module, leaf: str) -> tuple[Group, ...]:
    """The groups over which `layer` has cut its parameter `leaf`; none where each device has it whole."""
    if isinstance(getattr(layer, "layout", {}).get(leaf, Replicate()), Replicate):
        return ()
    groups = getattr(layer, "cut_over", [getattr(layer, "group", None)])
    return tuple(group for group in groups if group is not None and group.size > 1)


def cut_parameters(module: nn.Module) -> dict[str, tuple[Group, ...]]:
    """By name, the parameters of `module` that its layers have cut, and the groups over which."""
    found = {
        f"{path}.{leaf}".lstrip("."): cut_over(layer, leaf)
        for path, layer in module.named_modules(remove_duplicate=False)
        for leaf, parameter in layer._parameters.items()
        if parameter is not None
    }
    return {name: groups for name, groups in found.items() if groups}
