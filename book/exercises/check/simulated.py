"""Exercises whose answer is a function that calls `torch.distributed`: it runs as a guest on simulated devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist
from torch import Tensor

from book.exercises.check.failed import is_stub
from book.exercises.check.planning import Planning
from book.exercises.check.verdict import Verdict
from lib.devices.cluster import Cluster
from lib.devices.counts import counted
from lib.guest.program import guest


@dataclass(frozen=True, kw_only=True, repr=False)
class Simulated(Planning):
    """A case is `(given,)`, the tensor of each rank, which gets a copy of it: a collective in place changes no case.
    `around(program, copy)` is what a device does with the reader's function, and `judge(results, right, given)` sees
    what all of them return."""

    around: Callable[[Callable[..., Any], Any], Any]

    def verdict(self, program: Callable[..., Any]) -> Verdict:
        """What the judge says of the function on simulated devices."""
        if not callable(program):
            return super().verdict(program)
        if is_stub(program):
            return Verdict(self.name, "waiting", "is waiting for your code.")
        return super().verdict(self.on_devices(program))

    def on_devices(self, program: Callable[..., Any]) -> Callable[..., list[Any]]:
        """The function of a case that runs `program` on each device."""

        def device(given: list[Tensor]) -> Any:
            dist.init_process_group("gloo")
            return self.around(program, given[dist.get_rank()].clone())

        return lambda given: Cluster(len(given)).run(guest(device, given))

    def _cause(self, program: Callable[..., Any]) -> str | None:
        slips = {sentence: self.on_devices(slip) for sentence, slip in self.slips.items()}
        return Planning._cause(replace(self, slips=slips), program)

    def told(self, case: tuple[Any, ...]) -> str:
        """The case in words."""
        return counted(len(case[0]), "device")


def simulated(**parts: Any) -> Callable[[Callable[..., Any]], Simulated]:
    """Turns a solution into the exercise that it solves; `parts` are the fields of `Simulated`."""
    return lambda solution: Simulated(solution=solution, **parts)
