"""A pipeline schedule is data: for each device, the list of what it does, in order.

    Schedule("mine", [
        [Forward(0, 0), Forward(0, 1), Backward(0, 0), Backward(0, 1)],      # device 0 has stage 0
        [Forward(1, 0), Backward(1, 0), Forward(1, 1), Backward(1, 1)],      # device 1 has stage 1
    ])

The same lists are printed, drawn, checked (`check`), timed (`clock`) and executed (`worker`). A step is written as
PyTorch writes it: stage, letter, micro-batch, so "1F0" is the forward of micro-batch 0 through stage 1.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from lib.devices.counts import counted

What = Literal["F", "B"]  # what a message carries: an activation forward, or its gradient backward


@dataclass(frozen=True)
class Step:
    """What a device does for one micro-batch in one stage. Stages and micro-batches count from 0."""

    letter: ClassVar[str]
    stage: int
    micro: int

    def __str__(self) -> str:
        return f"{self.stage}{self.letter}{self.micro}"


class Forward(Step):
    """The layers of the stage; what they keep for the backward is held from here on."""

    letter = "F"


class Backward(Step):
    """Both gradients, of the stage's input and of its weights. Afterwards nothing is held."""

    letter = "B"


class BackwardInput(Step):
    """The gradient of the stage's input alone: the stage before waits for it."""

    letter = "I"


class BackwardWeight(Step):
    """The gradient of the stage's weights, which nobody waits for. Some time after its `BackwardInput`."""

    letter = "W"


@dataclass(frozen=True)
class Send(Step):
    """Sends what the stage has made: "F" its output to the stage behind, "B" its input's gradient to the one before."""

    what: What = "F"

    @property
    def letter(self) -> str:
        return f"SEND_{self.what}"

    @property
    def peer(self) -> int:
        """The stage that takes it."""
        return self.stage + (1 if self.what == "F" else -1)


@dataclass(frozen=True)
class Recv(Step):
    """Asks for what the stage needs: "F" its input, "B" its output's gradient. The step that uses it waits for it."""

    what: What = "F"

    @property
    def letter(self) -> str:
        return f"RECV_{self.what}"

    @property
    def peer(self) -> int:
        """The stage that sends it."""
        return self.stage - (1 if self.what == "F" else -1)


LETTERS = {kind.letter: kind for kind in (Forward, Backward, BackwardInput, BackwardWeight)}


@dataclass(frozen=True)
class Schedule:
    """`steps`: one list for each device. Which stage lies on which device is read from them."""

    name: str
    steps: Sequence[Sequence[Step]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(map(tuple, self.steps)))

    @staticmethod
    def read(name: str, *lines: str) -> "Schedule":
        """The schedule from one line for each device: `read("mine", "0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1")`."""
        return Schedule(name, [list(map(_read_step, line.split())) for line in lines])

    @property
    def devices(self) -> int:
        """How many."""
        return len(self.steps)

    @cached_property
    def device_of(self) -> dict[int, int]:
        """Stage -> the device that it lies on: where its first step stands."""
        found: dict[int, int] = {}
        for device, steps in enumerate(self.steps):
            for step in steps:
                if isinstance(step, Forward):
                    found.setdefault(step.stage, device)
        return dict(sorted(found.items()))

    @property
    def stages(self) -> int:
        """How many."""
        return len(self.device_of)

    @cached_property
    def chunks(self) -> int:
        """The most stages that one device has."""
        return max(list(self.device_of.values()).count(device) for device in range(self.devices))

    @cached_property
    def micros(self) -> int:
        """How many micro-batches: one more than the largest number among the forwards."""
        return 1 + max((s.micro for steps in self.steps for s in steps if isinstance(s, Forward)), default=-1)

    @cached_property
    def has_messages(self) -> bool:
        """Whether sends and receives stand in the lists; `with_messages` puts them there."""
        return any(isinstance(step, Send | Recv) for steps in self.steps for step in steps)

    def stages_of(self, device: int) -> list[int]:
        """The stages that lie on `device`."""
        return [stage for stage, place in self.device_of.items() if place == device]

    def __str__(self) -> str:
        lines = [f"  {device}: {' '.join(map(str, steps))}" for device, steps in enumerate(self.steps)]
        return "\n".join([f"{self.name}, {counted(self.micros, 'micro-batch')}", *lines])


def _read_step(text: str) -> Step:
    found = re.fullmatch(r"(\d+)(SEND_|RECV_|)([FBIW])(\d+)", text)
    if found is None or (found[2] and found[3] in "IW"):
        raise ValueError(f"{text!r} is no step: write stage, letter (F, B, I, W, SEND_F, ...) and micro-batch: 1F0")
    stage, micro = int(found[1]), int(found[4])
    if found[2]:
        return (Send if found[2] == "SEND_" else Recv)(stage, micro, found[3])
    return LETTERS[found[3]](stage, micro)
