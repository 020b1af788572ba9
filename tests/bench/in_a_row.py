"""The least that a simulation could take: the devices' own work, one after another in one thread, and nothing sent.

Smaller products and colder caches cost what they cost on one processor, whoever simulates. What the simulator takes
beyond this is its own: the data of the collectives, and the turns. The numbers are not right, only the work is.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.plan import Reading, now, spent
from bench.rounds import Work, step
from lib import Group
from lib.devices.collectives import Collective
from lib.devices.handle import Handle


class Nobody:
    """A meeting place where nobody else comes: a device gets something of the right shape at once."""

    def __init__(self):
        self._gathered: dict[tuple, Tensor] = {}

    def key_for(self, parent: int, ranks: tuple[int, ...], times: int) -> int:
        return times

    def join(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor) -> Tensor:
        return x

    def collect(self, x: Tensor, ranks: tuple[int, ...], rank: int, verb: Collective) -> Tensor:
        if verb.name == "all_reduce":
            return x
        if verb.name == "reduce_scatter":
            return x.chunk(len(ranks), verb.dim)[0].contiguous()
        if verb.name != "all_gather":
            raise ValueError(f"{verb} has no stand-in here")
        kept = x.shape, x.dtype, verb.dim
        if kept not in self._gathered:
            self._gathered[kept] = torch.cat([x] * len(ranks), verb.dim)
        return self._gathered[kept]

    def hand_out(self, x: Tensor, ranks: tuple[int, ...], rank: int, verb: Collective) -> Handle:
        return Handle(str(verb), lambda: self.collect(x, ranks, rank, verb))


def time_in_a_row(size: int, split: Callable[..., Work], dense: Work, backward: bool, steps: int) -> Reading:
    place = Nobody()
    works = [split(Group(place, rank, range(size)), *dense) for rank in range(size)]
    for work in works:
        step(*work, backward)
    start = now()
    for _ in range(steps):
        for work in works:
            step(*work, backward)
    return spent([(start, now())])
