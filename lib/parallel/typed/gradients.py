"""The two ends of a backward: with what it begins at the loss, and what is done with the gradients it leaves.

`loss.backward()` begins with a gradient of 1 on every device. Of a whole loss that is its gradient. Of a partial sum it
is too, since each summand has the gradient of the sum. Of a mean of means it is P times too much: the gradients are
then Partial(mean), and who adds them up must divide by P, once.
"""

from typing import Any

from torch import nn

from lib.devices import Group
from lib.parallel.sharding.placement import Partial, Shard
from lib.parallel.typed.kinds import CONSTANT, ENTERED, Kind, PlacementError, written


def checked_end(loss: Kind) -> Partial:
    """What the gradients that are partial will be parts of. PlacementError where the backward begins wrongly."""
    if loss == ENTERED:
        raise PlacementError(
            "backward() from a tensor that has entered a sharded region: every device would begin with the whole "
            "gradient, and f would sum them up. Let the loss leave the region first"
        )
    if isinstance(loss.value, Shard):
        return Partial()
    if isinstance(loss.value, Partial):
        return loss.value
    return Partial()


def check_average(types: Any, module: nn.Module, group: Group, share: float | None = None, *args, **kwargs) -> None:
    """Checks `average_gradients`: the gradients must be partial over the group, and are divided by P once in all."""
    axis = _axis_of(types, group)
    if axis is None:
        return
    for name, parameter in module.named_parameters():
        if parameter.grad is None:
            continue
        if not isinstance(types.of_gradient(parameter)[axis].value, Partial):
            raise PlacementError(
                f"average_gradients over {axis}: the gradient of {name} is whole already, and its sum over the devices "
                f"would be {group.size} times too large"
            )
        if types.ends.get(axis) == Partial() and (share is None or share < 1):
            raise PlacementError(
                f"average_gradients over {axis}: the gradient of {name} is {written(Partial())}, a summand, and not a "
                f"mean. Divided by {group.size} here, it would be scaled twice: the loss was divided already. "
                "Take the mean over the own samples as the loss, or pass share=1"
            )
        if types.ends.get(axis) == Partial("mean") and share == 1:
            raise PlacementError(
                f"average_gradients over {axis}: the gradient of {name} is that of each device's own mean, and the sum "
                f"of them is {group.size} times too large: leave share out"
            )


def averaged(types: Any, module: nn.Module, group: Group, *args, **kwargs) -> None:
    """After `average_gradients`: the gradients are whole over the group."""
    axis = _axis_of(types, group)
    for parameter in module.parameters():
        if axis is not None and parameter.grad is not None:
            types.kinds[parameter.grad] = {**types.of_gradient(parameter), axis: CONSTANT}


def _axis_of(types: Any, group: Group) -> str | None:
    return next((name for name, other in types.axes.items() if other.ranks == group.ranks), None)
