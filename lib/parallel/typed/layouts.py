"""From what a layer knows of a weight to its kind: its layout, the grid of its experts, and ZeRO's cut into pieces."""

from torch import Tensor, nn

from lib.devices import Group
from lib.parallel.attention.heads import FusedHeads
from lib.parallel.experts.grid import ExpertGrid, ShardExperts
from lib.parallel.sharding.dense import layout_of
from lib.parallel.sharding.placement import Placement, Replicate, Shard, ShardBlocks
from lib.parallel.tensor.vocabulary import PaddedShard
from lib.parallel.typed.kinds import Cut, Flat, Fused, Kind, PlacementError, Value


def kind_over(module: nn.Module, name: str, x: Tensor, group: Group, cut: bool, pieces: Group | None) -> Kind | None:
    """Of the weight `name` of `module` over `group`; None where nothing is known, so that it is whole there.

    `cut` says that the layers are cut over this group, by their layouts; `pieces` is the group over which ZeRO has cut
    the weight. Raises PlacementError for a layout that is unknown here.
    """
    if pieces is not None and set(group.ranks) <= set(pieces.ranks):
        value = Flat()
    else:
        value = _value(module, name, group, cut)
        if value is None:
            return None
        if pieces is not None and isinstance(value, Cut):
            value = Flat(value)
    return Kind(value, value if x.requires_grad else None)


def _value(module: nn.Module, name: str, group: Group, cut: bool) -> Value | None:
    layout = layout_of(module, name)
    if isinstance(layout, ShardExperts):
        grid = _grid_of(module, name)
        if set(group.ranks) <= set(grid.tensor.ranks):
            return Shard(layout.dim)
        return Shard(0) if layout.experts > 1 and set(group.ranks) <= set(grid.experts.ranks) else None
    return value_of_layout(layout, group.size) if cut else None


def value_of_layout(layout: Placement, devices: int) -> Value:
    """Of a weight that is cut as `layout` says over so many devices."""
    match layout:
        case Replicate() | Shard():
            return layout
        case ShardBlocks(blocks):
            return Fused(0, (1 / blocks,) * blocks)
        case FusedHeads(heads, kv_heads):
            own, common = heads // devices, max(1, kv_heads // devices)
            whole = own + 2 * common
            return Fused(0, (own / whole, common / whole, common / whole))
        case PaddedShard():
            return Shard(0)
    raise PlacementError(f"types do not know the layout {layout}; give the weight a kind by types.give(weight, ...)")


def _grid_of(module: nn.Module, name: str) -> ExpertGrid:
    """That of the innermost layer of experts around the weight."""
    path = name.split(".")
    for length in range(len(path) - 1, -1, -1):
        grid = getattr(module.get_submodule(".".join(path[:length])), "grid", None)
        if isinstance(grid, ExpertGrid):
            return grid
    raise PlacementError(
        f"types do not know over which devices the experts of {name} are divided: their layer has no grid"
    )
