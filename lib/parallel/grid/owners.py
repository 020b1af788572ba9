"""Of every parameter: along which axes devices hold copies of it, and who adds up their gradients.

Copies must get the same gradient, or they come apart. A gradient needs a sum along an axis when the copies there have
seen different tokens: along dp and cp, and of a tied embedding along pp. Along tp the copies have seen the same tokens,
unless sequence parallelism has cut them; then the layer itself makes the sum, in its backward. An expert is met by the
tokens of all ep devices, so along ep nothing is summed, and there are no copies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import nn

from lib.parallel.experts.gradients import is_divided
from lib.parallel.grid.ranks import GridGroups
from lib.parallel.pipeline.steps import Schedule
from lib.parallel.sequence.layers import SequenceLayerNorm
from lib.parallel.sequence.model import SequenceRowLinear
from lib.parallel.sharding.dense import layout_of
from lib.parallel.sharding.placement import Placement, Replicate

EMBEDDING = "embedding.weight"


@dataclass(frozen=True)
class Owner:
    """One parameter as this device holds it: its `layout` over tp, and `sizes`, by axis, of all axes along which it has
    copies. `summed` says, by axis, who adds up the gradients: "step", "layer" or "ends"; along an axis with copies that
    is not named, all compute the same gradient."""

    name: str
    parameter: nn.Parameter
    layout: Placement
    sizes: dict[str, int]
    summed: dict[str, str]

    @property
    def copies(self) -> int:
        """How many devices hold the same piece."""
        return prod(self.sizes.values())

    @property
    def is_expert(self) -> bool:
        """Whether other devices of the batch hold other experts."""
        return "ep" not in self.sizes


def owners(gpt: nn.Module, groups: GridGroups, schedule: Schedule) -> Iterator[Owner]:
    """One for each parameter of this device's part, in the model's order. Computed from the layouts of its layers."""
    sizes = dict(groups.grid.axes)
    ends = {schedule.device_of[0], schedule.device_of[schedule.stages - 1]}
    for name, parameter in gpt.named_parameters():
        layout, layer = layout_of(gpt, name), gpt.get_submodule(name.rpartition(".")[0])
        alike, summed = {"edp": sizes["edp"], "cp": sizes["cp"]}, {"edp": "step", "cp": "step"}
        if not is_divided(layout):
            alike["ep"], summed["ep"] = sizes["ep"], "step"
        if isinstance(layout, Replicate):
            alike["tp"] = sizes["tp"]
            if isinstance(layer, SequenceLayerNorm | SequenceRowLinear):
                summed["tp"] = "layer"
        if name == EMBEDDING and len(ends) == 2:
            alike["pp"], summed["pp"] = 2, "ends"
        yield Owner(name, parameter, layout, alike, {axis: who for axis, who in summed.items() if alike[axis] > 1})
