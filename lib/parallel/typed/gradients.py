"""The two ends of a backward: with what it begins at the loss, and what is done with the gradients it leaves.

`loss.backward()` begins with a gradient of 1 on every device. Of a whole loss that is its gradient. Of a partial sum it
is too, since each summand has the gradient of the sum. Of a mean of means it is P times too much: the gradients are
then Partial(mean), and who adds them up must divide by P, once. What nobody adds up afterwards, because it is cut or
was summed by f, stays P times too large.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lib.devices import Group
from lib.parallel.experts.gradients import group_of
from lib.parallel.experts.grid import ExpertGrid
from lib.parallel.sharding.dense import layout_of
from lib.parallel.sharding.placement import Partial
from lib.parallel.typed.kinds import CONSTANT, ENTERED, Cut, Flat, Kind, PlacementError, written
from lib.parallel.typed.verbs import MESSAGE
from lib.parallel.zero.piece import Piece


def checked_end(loss: Kind, pieces: bool = False) -> Partial:
    """What the gradients that are partial will be parts of. PlacementError where the backward begins wrongly; `pieces`
    says that parameters were gathered from ZeRO's pieces, whose gradients are averaged on the way."""
    if loss == ENTERED:
        raise PlacementError(
            "backward() from a tensor that has entered a sharded region: every device would begin with the whole "
            "gradient, and f would sum them up. Let the loss leave the region first"
        )
    if pieces and loss.value != Partial("mean"):
        raise PlacementError(
            f"backward() from a {written(loss.value)}: FullySharded takes the mean of the devices' gradients, so they "
            "would be scaled twice. Take the mean over the own samples as the loss, Partial(mean)"
        )
    return loss.value if isinstance(loss.value, Partial) else Partial()


def check_scale(types: Any) -> None:
    """After a backward from a mean of means: what no one will average may have no gradient."""
    with torch._C.DisableTorchFunction():
        leaves = [x for x in types.kinds if x.is_leaf and x.requires_grad and x.grad is not None]
    for x in leaves:
        for axis, kind in types.of(x).items():
            if types.ends[axis] != Partial("mean") or isinstance(kind.grad, Partial | Flat | None):
                continue
            raise PlacementError(
                f"the gradient of {types.name_of(x)} is {written(kind.grad)} over {axis}, and the loss is each "
                f"device's own mean: the gradient is that of the sum of {types.axes[axis].size} means, so many times "
                f"too large, and no average follows. Divide the loss by {types.axes[axis].size} before backward()"
            )


def check_average(types: Any, module: nn.Module, group: Group, share: float | None = None, *args, **kwargs) -> None:
    """Checks `average_gradients`: the gradients must be partial over the group, and are divided by P once in all."""
    for axis in types.axes_of(group.ranks):
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                _check_sum(types, "average_gradients", name, parameter, axis, share)


def averaged(types: Any, _: Any, module: nn.Module, group: Group, *args, **kwargs) -> None:
    """After `average_gradients`: the gradients are whole over the group."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            summed = dict.fromkeys(types.axes_of(group.ranks), CONSTANT)
            types.kinds[parameter.grad] = types.of_gradient(parameter) | summed


def check_sums(types: Any, model: nn.Module, grid: ExpertGrid, *args, **kwargs) -> None:
    """Checks `sum_gradients` of experts and all else, each over its own devices, without a factor."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            for axis in types.axes_of(group_of(layout_of(model, name), grid).ranks):
                _check_sum(types, "sum_gradients", name, parameter, axis, 1.0)


def summed(types: Any, _: Any, model: nn.Module, grid: ExpertGrid, *args, **kwargs) -> None:
    """After it: whole over those devices."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            over = types.axes_of(group_of(layout_of(model, name), grid).ranks)
            types.kinds[parameter.grad] = types.of_gradient(parameter) | dict.fromkeys(over, CONSTANT)


def check_reduce(types: Any, zero: Any, share: float | None = None, *args, **kwargs) -> dict[Tensor, dict[str, Kind]]:
    """Checks ZeRO's `reduce_gradients` like an average. Returns of what kinds the gradients of the pieces will be."""
    over, found = types.axes_of(zero.group.ranks), {}
    for (name, parameter), piece in zip(zero.named_parameters(), zero.pieces, strict=True):
        for axis in over:
            _check_sum(types, "reduce_gradients", name, parameter, axis, share)
        kinds = types.of_gradient(parameter)
        found[piece] = {axis: Kind(Flat()) if axis in over else flattened(kind) for axis, kind in kinds.items()}
    return found


def reduced(types: Any, found: dict[Tensor, dict[str, Kind]], *args, **kwargs) -> None:
    """After it: the gradients of the pieces are flat pieces."""
    for piece, kinds in found.items():
        if piece.grad is not None:
            types.kinds[piece.grad] = kinds


def check_step(types: Any, optimizer: Any, *args, **kwargs) -> None:
    """Checks a step of ZeRO's optimizer, or of one with master weights: no gradient may be a partial sum."""
    for p in optimizer.stepped:
        if p.grad is not None:
            types.check_gradient(p.origin.name if isinstance(p, Piece) else types.name_of(p), p)


def check_broadcast(types: Any, module: nn.Module, group: Group, *args, **kwargs) -> None:
    """Checks `broadcast_parameters`: what is cut over the group would be the same piece everywhere."""
    for axis in types.axes_of(group.ranks):
        for name, x in (*module.named_parameters(), *module.named_buffers()):
            kind = types.of(x)[axis]
            if isinstance(kind.value, Cut):
                raise PlacementError(
                    f"broadcast_parameters over {axis}: {name} is {written(kind.value)}, and all devices would get the "
                    "piece of one. Broadcast over the devices that hold copies"
                )


def flattened(kind: Kind) -> Kind:
    """The kind of a tensor, over another axis than that of the cut, once it is flattened and cut over that."""
    value, grad = (Flat(x) if isinstance(x, Cut) else x for x in (kind.value, kind.grad))
    return Kind(value, grad)


def _check_sum(types: Any, who: str, name: str, parameter: Tensor, axis: str, share: float | None) -> None:
    value, size = types.of_gradient(parameter)[axis].value, types.axes[axis].size
    if not isinstance(value, Partial):
        raise PlacementError(
            f"{who} over {axis}: the gradient of {name} is {'cut' if isinstance(value, Cut) else 'whole'} already, and "
            f"its sum over the devices would be {size} times too large"
        )
    if types.ends.get(axis) == Partial() and (share is None or share < 1):
        raise PlacementError(
            f"{who} over {axis}: the gradient of {name} is {written(Partial())}, a summand, and not a "
            f"mean. Divided by {size} here, it would be scaled twice: the loss was divided already. "
            "Take the mean over the own samples as the loss, or pass share=1"
        )
    if types.ends.get(axis) == Partial("mean") and share == 1:
        fix = "leave share out" if who != "sum_gradients" else f"divide the loss by {size} before backward()"
        raise PlacementError(
            f"{who} over {axis}: the gradient of {name} is that of each device's own mean, and the sum "
            f"of them is {size} times too large: {fix}"
        )


def refuse_pipeline(*args, **kwargs) -> None:
    """`run_pipeline` is no program that all devices run together."""
    raise PlacementError(MESSAGE)


STEPS = {  # between a backward and the next forward: what is asked before, and what the types learn afterwards
    "average_gradients": (check_average, averaged),
    "land_gradients": (check_average, averaged),
    "average_pieces": (check_average, averaged),
    "sum_gradients": (check_sums, summed),
    "reduce_gradients": (check_reduce, reduced),
    "land_pieces": (check_reduce, reduced),
    "step": (check_step, lambda *_: None),
    "run_pipeline": (refuse_pipeline, None),
    "broadcast_parameters": (check_broadcast, lambda *_: None),
}
