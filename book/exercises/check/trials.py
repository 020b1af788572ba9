"""One trial of a reader's program: random inputs of one shape, on one number of devices, and what came of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from book.exercises.check.endless import ended
from book.exercises.check.inputs import Input, OnRank0, drawn
from lib.devices import Cluster, Group, Hardware, Link, Meters
from lib.devices.counts import counted
from lib.parallel.sharding.placement import Partial, Placement, Replicate

SEED = 2  # of all trials: the same program gets the same verdict
# Every message takes a second, and nothing else takes any time: seconds are steps.
STEPS = Hardware("one second a message", 1e30, 1e30, 1e30, Link(1.0, 1e30), per_node=64)


@dataclass(frozen=True, eq=False)  # a trial is equal to itself alone
class Trial:
    """Whole inputs in float64, by name, for a number of devices. `even`: every dim divides by the devices."""

    devices: int
    even: bool
    lengths: Mapping[str, int]
    inputs: Mapping[str, Tensor]

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in self.inputs.items())
        return f"{counted(self.devices, 'device')} with {shapes}"


def trials(inputs: Mapping[str, Input], devices: tuple[int, ...], seed: int, empty: bool = False) -> Iterator[Trial]:
    """An even and an uneven trial per number of devices, then one where `torch.chunk` comes up short of pieces.

    With `empty`, each dim in turn is half as long there as there are devices: the last of them hold nothing of it.
    Seeded: the same program gets the same verdict.
    """
    random = torch.Generator().manual_seed(seed)
    names = list(dict.fromkeys(re.findall("[a-z]+", " ".join(given.dims for given in inputs.values()))))

    def trial(parts: int, even: bool, lengths: Sequence[int]) -> Trial:
        named = dict(zip(names, lengths, strict=False))
        return Trial(parts, even, named, {name: given.draw(named, random) for name, given in inputs.items()})

    for parts in devices:
        for even in (True, False) if parts > 1 else (True,):
            # Lengths differ from each other, so that a mixed-up dim shows; none is 1, so that nothing broadcasts.
            each = (torch.randperm(len(names) + 1, generator=random) + 2).tolist()
            more = [0 if even else int(torch.randint(1, parts, (), generator=random)) for _ in names]
            yield trial(parts, even, [k * parts + m for k, m in zip(each, more, strict=False)])
    most = devices[-1]
    short = [n for n in range(most + 1, most * most) if chunks(n, most) < most]
    if short:
        lengths = [*short, *(most * k + 1 for k in range(most, most + len(names)))][: len(names)]
        yield trial(most, False, lengths)
        for turn in range(len(names)) if empty else ():
            yield trial(most, False, [most // 2 if i == turn else n for i, n in enumerate(lengths)])


def chunks(length: int, parts: int) -> int:
    """How many pieces `torch.chunk` makes of `length`, asked for `parts`: it rounds their size up."""
    return math.ceil(length / math.ceil(length / parts))


def hand_over(whole: Tensor, at: Placement | OnRank0, parts: int) -> list[Tensor]:
    """The input that each device is given: as `place`, but with random terms where the placement is Partial."""
    random = torch.Generator().manual_seed(parts)
    others = [drawn(whole.shape, random) for _ in range(parts - 1)]
    if isinstance(at, Partial):
        return [whole - sum(others), *others]
    if isinstance(at, OnRank0):
        return [whole.clone(), *others]
    return place(whole, at, parts)


def spoil(whole: Tensor, part: Placement, parts: int) -> list[Tensor]:
    """The whole for every device, but with NaN where it is not the device's part."""
    inside = [part.piece(torch.arange(whole.numel()).view(whole.shape), parts, rank) for rank in range(parts)]
    mine = [torch.full_like(whole, torch.nan) for _ in range(parts)]
    for spoiled, own in zip(mine, inside, strict=True):
        spoiled.view(-1)[own.flatten()] = whole.reshape(-1)[own.flatten()]
    return mine


def place(whole: Tensor, at: Placement, parts: int) -> list[Tensor]:
    """What each device holds of `whole`, in memory of its own. (Partial: the whole, as a partial sum's gradient is.)"""
    held = Replicate() if isinstance(at, Partial) else at
    return [held.piece(whole, parts, rank).detach().clone() for rank in range(parts)]


class Work(TorchDispatchMode):
    """Counts the multiplications of matrix products, however they are written: `@`, einsum, F.linear.

    PyTorch keeps such modes per thread, so: per device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.done = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and PyTorch's guard against it costs as much as a small product

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if torch._C._current_autograd_node() is not None:
            pass  # in a backward that the program runs itself
        elif name in ("mm", "bmm"):
            self.done += args[0].numel() * args[1].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.done += args[1].numel() * args[2].shape[-1]
        elif name in ("mv", "dot"):
            self.done += args[0].numel()
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: by rank, what was handed over, returned, and multiplied (if counted); steps; meters."""

    handed: list[dict[str, Tensor]]
    returned: list[Any]
    work: list[int]
    steps: int  # messages one after the other, on the longest way
    paths: set[tuple[int, int]]  # who sent messages to whom
    meters: Meters = field(repr=False)


def attempt(
    program: Callable[..., Any],
    trial: Trial,
    inputs: Mapping[str, Input],
    requires_grad: tuple[str, ...] = (),
    backward: Callable[[int, Any], None] = lambda rank, returned: None,
    watch: bool = False,
    count: bool = False,
    usable: Mapping[str, Placement] | None = None,
) -> Outcome:
    """Runs the program on its own copy of the inputs per device, then `backward(rank, returned)` on the device.

    Of an input in `usable` a device can use only that part: elsewhere it is NaN. With `watch`, messages are
    counted in steps, and by who sends to whom; with `count`, multiplications, which slows every operation down. Raises
    what the program or the engine raises; Fault where it does not end.
    """
    placed = {name: hand_over(trial.inputs[name], given.at, trial.devices) for name, given in inputs.items()}
    placed |= {name: spoil(trial.inputs[name], part, trial.devices) for name, part in (usable or {}).items()}
    handed = [{name: pieces[rank] for name, pieces in placed.items()} for rank in range(trial.devices)]
    for mine in handed:
        for name in requires_grad:
            mine[name].requires_grad_()
    work = [0] * trial.devices

    def device(group: Group) -> Any:
        torch.get_num_threads()  # a new thread takes over the number of cores only when it is asked for it
        counted = Work()
        with counted if count else nullcontext():
            returned = program(group, *handed[group.rank].values())
        work[group.rank] = counted.done
        backward(group.rank, returned)
        return returned

    cluster = Cluster(trial.devices, hardware=STEPS if watch else None)
    with ended(program, f"on {trial}"):
        returned = cluster.run(device)
    if not watch:
        return Outcome(handed, returned, work, 0, set(), cluster.meters)
    named = ((event.rank, event.name.removeprefix("send to ")) for event in cluster.trace.events)
    paths = {(src, int(dst)) for src, dst in named if dst.isdigit()}
    return Outcome(handed, returned, work, round(cluster.trace.seconds), paths, cluster.meters)


@contextmanager
def one_core() -> Iterator[None]:
    """PyTorch on one core: for tiny products a team of cores per device costs far more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
