"""The question of every chapter, asked of any program: is it equal to one device, forward and backward?

`equal_to_one_device` runs the same thing on P devices and on one, with the same weights, the same inputs and the same
gradient from above, all in float64. Then it looks at every output, at the gradient of every input, and at the gradient
of every parameter, on every device.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib.devices import Cluster, Group
from lib.devices.counts import counted
from lib.parallel.sharding.dense import dense_state, layout_of, load_dense
from lib.parallel.sharding.placement import Placement, Replicate

REPLICATE = Replicate()


@dataclass(frozen=True)
class Comparison:
    """How far P devices are from one: the largest difference of each tensor over all devices, by its name.

    A difference is told as a share of the tensor's largest element, or as it is where that is below 1. What only one
    side has, and what is not a number, differs by infinity. True when all differences are within the `tolerance`.
    """

    devices: int
    differences: Mapping[str, float]
    tolerance: float

    @property
    def largest(self) -> float:
        """The largest difference of all."""
        return max(self.differences.values())

    @property
    def unequal(self) -> list[str]:
        """The names of all tensors that differ by more than the tolerance, the worst first."""
        worst_first = sorted(self.differences, key=lambda name: -self.differences[name])
        return [name for name in worst_first if not self.differences[name] <= self.tolerance]

    def __bool__(self) -> bool:
        return not self.unequal

    def __str__(self) -> str:
        count = len(self.differences)
        equal = f"{count - len(self.unequal)} of {count} tensors equal to {self.tolerance:g}"
        told = f"{counted(self.devices, 'device')}: {equal}"
        return told + "".join(f"; {name} differs by {self.differences[name]:.1e}" for name in self.unequal[:1])


def equal_to_one_device(
    make: Callable[[Group], Callable[..., Tensor]],
    *inputs: Tensor,
    devices: int,
    cut: Placement | Sequence[Placement] = REPLICATE,
    output: Placement = REPLICATE,
    state: Mapping[str, Tensor] | None = None,
    against: Callable[..., Tensor] | None = None,
    tolerance: float = 1e-12,
) -> Comparison:
    """Compares `make(group)(*inputs)` on `devices` devices with the same on one, forward and backward.

    `make(group)` gives what each device runs: a module, or a function of the inputs. Inputs are whole tensors: `cut`
    says what each device gets of them (one placement for all, or one for each), and `output` what it has of the
    result. Inputs that are not whole numbers get gradients. The gradient from above is random, or 1 for a
    single number.

    Weights are those of `state`, a dense state dict, or else those that one device starts with. `against` is another
    right answer than one device's: a dense module with the same names, such as PyTorch's own.

    There must be no dropout. Raises ValueError, naming the rank, when a shape is another than the placement says.
    """
    inputs = tuple(x.detach().double() if x.is_floating_point() else x for x in inputs)
    cuts = [cut] * len(inputs) if isinstance(cut, Placement) else list(cut)

    def one(group: Group) -> tuple[Any, Any, Any]:
        """What one device makes of it: the weights it used, the gradient from above, and the outcome."""
        run, weights = _double(against or make(group)), None
        if isinstance(run, nn.Module):
            weights = state or dense_state([run])
            load_dense(run, weights, group)
        return weights, *_outcome(run, inputs, _from_above)

    def many(group: Group) -> dict[str, float]:
        """How far this device is from its piece of that, by name."""
        run = _double(make(group))
        if isinstance(run, nn.Module):
            load_dense(run, weights, group)

        def piece(placement: Placement, whole: Tensor) -> Tensor:
            return placement.piece(whole, group.size, group.rank)

        def from_above(y: Tensor) -> Tensor:
            mine = piece(output, above)
            _check_shape(mine, y, "output", group)
            return mine

        _, found = _outcome(run, list(map(piece, cuts, inputs)), from_above)
        outside = {"output": output} | {f"input {i}": placement for i, placement in enumerate(cuts)}
        differences = {}
        for name in expected.keys() | found.keys():
            whole = expected.get(name)
            if whole is not None:
                whole = piece(outside[name] if name in outside else layout_of(run, name), whole)
            differences[name] = _difference(whole, found.get(name), name, group)
        return differences

    weights, above, expected = Cluster(1).run(one)[0]
    each = Cluster(devices).run(many)
    return Comparison(devices, {name: max(found[name] for found in each) for name in sorted(each[0])}, tolerance)


def _double(made: Any) -> Any:
    return made.double() if isinstance(made, nn.Module) else made


def _from_above(y: Tensor) -> Tensor:
    return torch.ones_like(y) if y.ndim == 0 else torch.randn_like(y)


def _outcome(
    run: Callable[..., Tensor], inputs: Sequence[Tensor], above: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The gradient from above; output and all gradients, by name."""
    inputs = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    parameters = dict(run.named_parameters()) if isinstance(run, nn.Module) else {}
    for parameter in parameters.values():
        parameter.grad = None
    y = run(*inputs)
    upstream = above(y.detach())
    y.backward(upstream)
    found = {"output": y.detach()} | {f"input {i}": x.grad for i, x in enumerate(inputs) if x.requires_grad}
    return upstream, found | {name: parameter.grad for name, parameter in parameters.items()}


def _difference(expected: Tensor | None, found: Tensor | None, name: str, group: Group) -> float:
    if expected is None or found is None:
        return 0.0 if expected is found else math.inf
    _check_shape(expected, found, name, group)
    if not expected.numel():
        return 0.0
    difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=1))
    return math.inf if math.isnan(difference) else difference


def _check_shape(expected: Tensor, found: Tensor, name: str, group: Group) -> None:
    if expected.shape != found.shape:
        raise ValueError(
            f"equal_to_one_device on rank {group.rank} of {group.size}: {name} has shape {tuple(found.shape)}, but "
            f"this device's piece of it has {tuple(expected.shape)}; say with `cut` and `output` how tensors are cut"
        )
