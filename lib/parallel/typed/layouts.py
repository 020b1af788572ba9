"""From a layer's `layout` of a weight to its kind."""

from torch import Tensor

from lib.parallel.attention.heads import FusedHeads
from lib.parallel.sharding.placement import Placement, Replicate, Shard, ShardBlocks
from lib.parallel.tensor.vocabulary import PaddedShard
from lib.parallel.typed.kinds import Fused, Kind, PlacementError, Value


def kind_of_layout(layout: Placement, x: Tensor, devices: int) -> Kind:
    """Of a weight `x` that is cut as `layout` says over so many devices. PlacementError for a layout unknown here."""
    value = _value(layout, devices)
    return Kind(value, value if x.requires_grad else None)


def _value(layout: Placement, devices: int) -> Value:
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
