"""One trial of a reader's program: random inputs of one shape, on one number of devices, and what came of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lib.devices import Cluster, Group, Hardware, Link, Meters
from lib.devices.pieces import cut
from lib.parallel.sharding.placement import Partial, Placement, Replicate, Shard

WHOLE = Replicate()
# Every message takes a second, and nothing else takes any time: seconds are steps.
STEPS = Hardware("one second a message", 1e30, 1e30, 1e30, Link(1.0, 1e30), per_node=64)


@dataclass(frozen=True)
class OnRank0:
    """Rank 0 holds the tensor; the others hold something else of its shape."""


@dataclass(frozen=True)
class Input:
    """One input: the names of its dims, e.g. "batch in", and where it is when the program starts."""

    dims: str
    at: Placement | OnRank0 = WHOLE

    def shape(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given lengths; "in+1" is one more than "in", "4*heads" is four times "heads", "2" is 2."""
        named = (name.partition("+") for name in self.dims.split())
        return tuple(_product(name, lengths) + int(more or 0) for name, _, more in named)

    def draw(self, lengths: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Random numbers in float64, whole. Other kinds of inputs draw something else."""
        return drawn(self.shape(lengths), random)


def _product(factors: str, lengths: Mapping[str, int]) -> int:
    return math.prod(int(factor) if factor.isdigit() else lengths[factor] for factor in factors.split("*"))


@dataclass(frozen=True)
class Trial:
    """Whole inputs in float64, by name, for a number of devices. `even`: every dim divides by the devices."""

    devices: int
    even: bool
    lengths: Mapping[str, int]
    inputs: Mapping[str, Tensor]

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in self.inputs.items())
        return f"{self.devices} device{'s' * (self.devices > 1)} with {shapes}"


def trials(inputs: Mapping[str, Input], devices: tuple[int, ...], seed: int) -> Iterator[Trial]:
    """An even and an uneven trial per number of devices. Seeded: the same program gets the same verdict."""
    random = torch.Generator().manual_seed(seed)
    names = list(dict.fromkeys(re.findall("[a-z]+", " ".join(given.dims for given in inputs.values()))))
    for parts in devices:
        for even in (True, False) if parts > 1 else (True,):
            # Lengths differ from each other, so that a mixed-up dim shows; none is 1, so that nothing broadcasts.
            each = (torch.randperm(len(names) + 1, generator=random) + 2).tolist()
            more = [0 if even else int(torch.randint(1, parts, (), generator=random)) for _ in names]
            lengths = {name: k * parts + m for name, k, m in zip(names, each, more, strict=False)}
            yield Trial(parts, even, lengths, {name: given.draw(lengths, random) for name, given in inputs.items()})


def drawn(shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Random numbers in float64."""
    return torch.randn(tuple(shape), generator=random, dtype=torch.float64)


def hand_over(whole: Tensor, at: Placement | OnRank0, parts: int) -> list[Tensor]:
    """The input that each device is given: as `place`, but with random terms where the placement is Partial."""
    random = torch.Generator().manual_seed(parts)
    others = [drawn(whole.shape, random) for _ in range(parts - 1)]
    if isinstance(at, Partial):
        return [whole - sum(others), *others]
    if isinstance(at, OnRank0):
        return [whole.clone(), *others]
    return place(whole, at, parts)


def place(whole: Tensor, at: Placement, parts: int) -> list[Tensor]:
    """What each device holds of `whole`, in memory of its own. (Partial: the whole, as a partial sum's gradient is.)"""
    pieces = cut(whole, parts, at.dim) if isinstance(at, Shard) else [whole] * parts
    return [piece.detach().clone() for piece in pieces]


class Work(TorchFunctionMode):
    """Counts the multiplications of matrix products. (PyTorch keeps such modes per thread, so: per device.)"""

    def __init__(self) -> None:
        super().__init__()
        self.done = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("matmul", "__matmul__", "mm", "bmm"):
            self.done += args[0].numel() * args[1].shape[-1]
        elif name == "__rmatmul__":
            self.done += args[1].numel() * args[0].shape[-1]
        elif function is F.linear:
            self.done += args[0].numel() * args[1].shape[0]
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: by rank, what was handed over, returned, how much was multiplied; steps; meters."""

    handed: list[dict[str, Tensor]]
    returned: list[Any]
    work: list[int]
    steps: int  # messages one after the other, on the longest way
    meters: Meters = field(repr=False)


def attempt(
    program: Callable[..., Any],
    trial: Trial,
    inputs: Mapping[str, Input],
    requires_grad: tuple[str, ...] = (),
    backward: Callable[[int, Any], None] = lambda rank, returned: None,
    count_steps: bool = False,
) -> Outcome:
    """Runs the program on its own copy of the inputs per device, then `backward(rank, returned)` on the device.

    Raises what the program or the engine raises.
    """
    placed = {name: hand_over(trial.inputs[name], given.at, trial.devices) for name, given in inputs.items()}
    handed = [{name: pieces[rank] for name, pieces in placed.items()} for rank in range(trial.devices)]
    for mine in handed:
        for name in requires_grad:
            mine[name].requires_grad_()
    work = [0] * trial.devices

    def device(group: Group) -> Any:
        torch.get_num_threads()  # a new thread takes over the number of cores only when it is asked for it
        with Work() as counted:
            returned = program(group, *handed[group.rank].values())
        work[group.rank] = counted.done
        backward(group.rank, returned)
        return returned

    cluster = Cluster(trial.devices, hardware=STEPS if count_steps else None)
    returned = cluster.run(device)
    return Outcome(handed, returned, work, round(cluster.trace.seconds) if count_steps else 0, cluster.meters)


@contextmanager
def one_core() -> Iterator[None]:
    """PyTorch on one core: for tiny products a team of cores per device costs far more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
