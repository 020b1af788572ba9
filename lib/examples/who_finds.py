"""Who finds a mistake of placement? The programs of `misplaced` are run with it, on one device and on several."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from lib import Cluster, Group, PlacementError, Typed
from lib.examples.misplaced import Mistake, Program, texts


def train(group: Group, mistake: Mistake, steps: int, typed: bool) -> dict[str, Any]:
    """Trains by plain steps; the losses, and the first step's gradients. With `typed`, one typed step."""
    program, ways = mistake.program, {**mistake.program.ways, **mistake.wrong}
    at, layouts = program.place(group), program.layouts(mistake.wrong)
    model = nn.ParameterDict(
        {name: layouts[name].piece(p, group.size, group.rank).clone() for name, p in program.weights().items()}
    )
    given = [program.own(x, at, ways).clone() for x in texts()]
    if typed:
        with Typed(**program.axes(at)) as types:
            for name, p in model.items():
                types.give(p, **program.kinds(name, layouts[name]))
            for x in given:
                types.give(x, **program.given)
            program.run(at, model, *given, ways).backward()
            program.after(at, model, ways)
            types.check_gradients(model)
        return {}
    losses, first = [], {}
    for _ in range(steps):
        loss = program.run(at, model, *given, ways)
        loss.backward()
        program.after(at, model, ways)
        losses.append(program.mean(loss.detach(), at, ways).item())
        first = first or {name: p.grad.clone() for name, p in model.items()}
        with torch.no_grad():
            for p in model.values():
                p -= 0.5 * p.grad
                p.grad = None
    return {"losses": losses, "gradients": first}


@dataclass(frozen=True)
class Found:
    """Who finds a mistake: shapes (the run stops), the curve of the loss, comparing with one device, and types."""

    shapes: bool
    curve: bool
    one_device: bool
    types: str  # what they say; "" where they say nothing, or refuse the right program too


def who_finds(mistake: Mistake, devices: int = 4, steps: int = 12) -> Found:
    """Runs the program on one device and with the mistake on `devices`. The curve tells when the last loss is more than
    10 % off; comparing tells when the first loss or a gradient differs by more than 1e-12."""
    one, types = _alone(mistake.program, steps), _typed(mistake, devices)
    if right_is_refused(mistake.program, devices):
        types = ""
    try:
        many = Cluster(devices).run(train, mistake, steps, False)
    except (RuntimeError, ValueError):
        return Found(True, True, True, types)
    off = abs(many[0]["losses"][-1] / one["losses"][-1] - 1)
    cut = mistake.program.cut
    same = abs(many[0]["losses"][0] - one["losses"][0]) < 1e-12 and all(
        torch.allclose(cut[name].piece(whole, devices, rank), many[rank]["gradients"][name], rtol=0, atol=1e-12)
        for name, whole in one["gradients"].items()
        for rank in range(devices)
    )
    return Found(False, not off < 0.1, not same, types)


@cache
def _alone(program: Program, steps: int) -> dict[str, Any]:
    return Cluster(1).run(train, Mistake("none", program, {}), steps, False)[0]


@cache
def right_is_refused(program: Program, devices: int) -> bool:
    """Whether types refuse the program without a mistake: then they cannot tell a wrong one from it."""
    return bool(_typed(Mistake("none", program, {}), devices))


def _typed(mistake: Mistake, devices: int) -> str:
    try:
        Cluster(devices).run(train, mistake, 1, True)
    except PlacementError as error:
        return str(error)
    return ""
