"""Who finds a mistake of placement? The programs of `misplaced` are run with it, on one device and on several."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lib import ENTERED, Cluster, Group, PlacementError, Replicate, Shard, Typed, average_gradients, shard
from lib.examples.misplaced import CUT, PROGRAMS, Mistake, Ways, data_parallel, texts, weights


def train(group: Group, mistake: Mistake, steps: int, typed: bool) -> dict[str, Any]:
    """Trains by plain steps; the losses, and the first step's gradients. With `typed`, one typed step."""
    steps_of, dim = PROGRAMS[mistake.program]
    ways = {**steps_of, **mistake.wrong}
    data = mistake.program is data_parallel
    cut = dict.fromkeys(CUT, Replicate()) if data else CUT
    w = {name: cut[name].piece(p, group.size, group.rank).clone() for name, p in weights().items()}
    model = torch.nn.ParameterDict(w)
    given = [x if dim is None else shard(x, group, dim).clone() for x in texts()]
    if typed:
        with Typed(group=group) as types:
            for name, p in model.items():
                types.give(p, group=ENTERED if data else cut[name])
            for x in given:
                types.give(x, group=Replicate() if dim is None else Shard(dim))
            _step(mistake.program, group, model, given, ways)
            types.check_gradients(model)
        return {}
    losses, first = [], {}
    for _ in range(steps):
        loss = _step(mistake.program, group, model, given, ways)
        losses.append(loss.item() if not data else group.all_reduce(loss.detach() / group.size).item())
        first = first or {name: p.grad.clone() for name, p in model.items()}
        with torch.no_grad():
            for p in model.values():
                p -= 0.5 * p.grad
                p.grad = None
    return {"losses": losses, "gradients": first}


def _step(program: Callable, group: Group, model: Any, given: list[Tensor], ways: Ways) -> Tensor:
    loss = program(group, model, *given, ways)
    loss.backward()
    if program is data_parallel and (share := ways["share"](group.size)) is not None:
        average_gradients(model, group, share=share)
    return loss


@dataclass(frozen=True)
class Found:
    """Who finds a mistake: shapes (the run stops), the curve of the loss, comparing with one device, and types."""

    shapes: bool
    curve: bool
    one_device: bool
    types: str  # what they say; "" where they say nothing


def who_finds(mistake: Mistake, devices: int = 4, steps: int = 12) -> Found:
    """Runs the program on one device and with the mistake on `devices`. The curve tells when the last loss is more than
    10 % off; comparing tells when the first loss or a gradient differs by more than 1e-12."""
    one = _alone(mistake.program, steps)
    try:
        many = Cluster(devices).run(train, mistake, steps, False)
    except (RuntimeError, ValueError):
        return Found(True, True, True, _typed(mistake, devices))
    off = abs(many[0]["losses"][-1] / one["losses"][-1] - 1)
    cut = dict.fromkeys(CUT, Replicate()) if mistake.program is data_parallel else CUT
    same = abs(many[0]["losses"][0] - one["losses"][0]) < 1e-12 and all(
        torch.allclose(cut[name].piece(whole, devices, rank), many[rank]["gradients"][name], rtol=0, atol=1e-12)
        for name, whole in one["gradients"].items()
        for rank in range(devices)
    )
    return Found(False, not off < 0.1, not same, _typed(mistake, devices))


@cache
def _alone(program: Callable, steps: int) -> dict[str, Any]:
    return Cluster(1).run(train, Mistake("none", program, {}), steps, False)[0]


def _typed(mistake: Mistake, devices: int) -> str:
    try:
        Cluster(devices).run(train, mistake, 1, True)
    except PlacementError as error:
        return str(error)
    return ""
