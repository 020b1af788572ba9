"""What can happen to a device, made to happen: faults between a program and the others, at a moment of our choice.

    Cluster(4).run(with_faults(program, Dies(rank=2, call=5)), ...)

Between a group and its meeting place stands a `Faulty`, which passes all calls on and does its mischief at one of them.
Calls are counted per device, from 0: each collective and each message is one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib.devices.collectives import Collective
from lib.devices.engine.meeting_place import MeetingPlace
from lib.devices.group import Group
from lib.devices.handle import Handle
from lib.devices.trace import Event


@dataclass(frozen=True)
class Fault:
    """Something that happens to the device with rank `rank` in the cluster, at its call number `call`."""

    rank: int
    call: int


@dataclass(frozen=True)
class Dies(Fault):
    """The device is gone, without a word: what it was to bring, it never brings."""


@dataclass(frozen=True)
class Loses(Fault):
    """A message that the device sends does not arrive. ValueError when the call is no `send`."""


@dataclass(frozen=True)
class Flips(Fault):
    """One bit of what the device brings is another: bit `bit` of element `element`, from the least one on. ValueError
    when it brings nothing."""

    element: int = 0
    bit: int = 0


@dataclass(frozen=True)
class Late(Fault):
    """From this call on, the device comes `seconds` later to each, on the virtual clock."""

    seconds: float = 0.0


class Gone(BaseException):
    """Ends the program of a device that has died."""


def with_faults(program: Callable[..., Any], *faults: Fault) -> Callable[..., Any]:
    """The same program among devices that fail. A device that dies returns None. ValueError for a fault of a device
    that is not there."""

    def faulty(group: Group, *args: Any, **kwargs: Any) -> Any:
        nobody = [fault for fault in faults if fault.rank not in group.ranks]
        if nobody:
            raise ValueError(f"{nobody[0]}: there is no such device among the {group.size}")
        try:
            return program(group.at(Faulty(group.place, faults)), *args, **kwargs)
        except Gone:
            return None

    return faulty


class Faulty:
    """A meeting place behind which one device is not well; one object for each device."""

    def __init__(self, place: MeetingPlace, faults: tuple[Fault, ...]):
        self._place, self._faults, self._calls = place, faults, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)  # whatever is no call: names of groups, the time

    def join(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None) -> Any:
        """A collective; what the device brings may have changed."""
        x, _ = self._suffer(ranks[rank], x, verb.name)
        return self._place.join(key, ranks, rank, verb, x)

    def send(self, key: int, ranks: tuple[int, ...], rank: int, dst: int, tag: int, x: Tensor) -> None:
        """A message, which may have changed, or be lost."""
        x, lost = self._suffer(ranks[rank], x, "send")
        if not lost:
            self._place.send(key, ranks, rank, dst, tag, x)

    def recv(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Tensor:
        """A message comes in."""
        self._suffer(ranks[rank], None, "recv")
        return self._place.recv(key, ranks, rank, src, tag)

    def expect(self, key: int, ranks: tuple[int, ...], rank: int, src: int, tag: int) -> Handle:
        """A message will come in."""
        self._suffer(ranks[rank], None, "recv")
        return self._place.expect(key, ranks, rank, src, tag)

    def _suffer(self, me: int, x: Tensor | None, call: str) -> tuple[Tensor | None, bool]:
        """What the device brings now, and whether it is lost on the way."""
        number, self._calls, lost = self._calls, self._calls + 1, False
        for fault in self._faults:
            if fault.rank != me:
                continue
            if isinstance(fault, Late) and number >= fault.call:
                self._be_late(me, fault)
            elif number != fault.call:
                continue
            elif isinstance(fault, Dies):
                raise Gone
            elif isinstance(fault, Flips):
                if x is None:
                    raise ValueError(f"{fault}: this call is {call}, and the device brings nothing to it")
                x = flipped(x, fault.element, fault.bit)
            elif isinstance(fault, Loses):
                if call != "send":
                    raise ValueError(f"{fault}: this call is {call}, and only a send can be lost")
                lost = True
        return x, lost

    def _be_late(self, me: int, fault: Late) -> None:
        clock = getattr(self._place, "clock", None)
        if clock is None:
            raise ValueError(f"{fault}: without a virtual clock nobody can be late. Cluster(..., hardware='H100')")
        start = clock.now[me]
        clock.now[me] += fault.seconds
        clock.trace.events.append(Event(me, "compute", "late", start, clock.now[me]))  # it works on: only others wait


def flipped(x: Tensor, element: int, bit: int) -> Tensor:
    """A copy of `x` in which one bit of one element is another. ValueError when there is no such bit."""
    size = 8 * x.element_size()
    if not 0 <= element < x.numel() or not 0 <= bit < size:
        raise ValueError(f"no bit {bit} of element {element} in {x.numel()} elements of {size} bits")
    changed = x.detach().clone(memory_format=torch.contiguous_format)
    bits = changed.view(-1).view(torch.uint8)  # little-endian: the byte of the lowest bits first
    bits[element * x.element_size() + bit // 8] ^= 1 << bit % 8
    return changed
