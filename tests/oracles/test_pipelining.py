"""Our pipelines against torch.distributed.pipelining, in real processes: its lists of actions and its gradients."""

import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import schedules as theirs
from torch.nn import functional as F

from lib import (
    Cluster,
    Schedule,
    breadth_first,
    check_schedule,
    dual_pipe_v,
    gpipe,
    interleaved,
    one_f_one_b,
    run_pipeline,
    with_messages,
    zb_v,
)

HIDDEN, MICROS = 6, 6

# ours, by the name of theirs; None where the same idea is written in another order
OURS = {
    "ScheduleGPipe": gpipe,
    "Schedule1F1B": one_f_one_b,
    "ScheduleInterleaved1F1B": lambda p, m: interleaved(p, m, 2),
    "ScheduleZBVZeroBubble": zb_v,
    "ScheduleDualPipeV": dual_pipe_v,
    "ScheduleLoopedBFS": None,  # its backwards begin with the last micro-batch
    "ScheduleInterleavedZeroBubble": None,  # 1F1B with chunks and split backwards, which has no name here
}


def stages_of(name, rank, size):
    """The stages of a process."""
    if name in ("ScheduleGPipe", "Schedule1F1B"):
        return [rank]
    return (
        [rank, 2 * size - 1 - rank] if name in ("ScheduleZBVZeroBubble", "ScheduleDualPipeV") else [rank, rank + size]
    )


def layer(stage):
    generator = torch.Generator().manual_seed(stage)
    made = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Tanh()).double()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return made


def data():
    generator = torch.Generator().manual_seed(99)
    return torch.randn((2, 2 * MICROS, HIDDEN), generator=generator, dtype=torch.float64)


def torch_schedule(name, rank, size):
    """PyTorch's schedule, its layers by stage."""
    mine = stages_of(name, rank, size)
    layers = {stage: layer(stage) for stage in mine}
    count = size * len(mine)
    made = [PipelineStage(layers[stage], stage, count, torch.device("cpu")) for stage in mine]
    kind = getattr(theirs, name)
    return kind(made[0] if len(made) == 1 else made, MICROS, loss_fn=F.mse_loss), layers


def with_torch(name):
    """In a process: the gradients after one step, by stage; and all lists of actions, as text."""
    rank, size = dist.get_rank(), dist.get_world_size()
    schedule, layers = torch_schedule(name, rank, size)
    x, y = data()
    last = size * len(layers) - 1
    schedule.step(*[x] * (0 in layers), **({"target": y} if last in layers else {}))
    order = schedule._get_pipeline_order() if len(layers) == 1 else schedule.pipeline_order
    lists = []
    for actions in map(order.get, range(size)):
        parts = [part for action in actions if action for part in action.sub_actions or [action]]
        lists.append(" ".join(text for text in map(str, parts) if "REDUCE" not in text))
    if name == "Schedule1F1B" and "F0" not in lists[-1]:
        # The list that it shows, and does not use, counts the forwards of the last stage from 1 (PyTorch 2.13).
        lists[-1] = re.sub(r"F(\d+)", lambda forward: f"F{int(forward[1]) - 1}", lists[-1])
    return {stage: [p.grad for p in mine.parameters()] for stage, mine in layers.items()}, lists


def with_ours(group, schedule):
    layers = {stage: layer(stage) for stage in schedule.stages_of(group.rank)}
    x, y = (z.chunk(MICROS) for z in data())
    run_pipeline(group, schedule, layers, x, lambda out, k: F.mse_loss(out, y[k]) / MICROS)
    return {stage: [p.grad for p in mine.parameters()] for stage, mine in layers.items()}


def near(one, other):
    return all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("size", [2, 3])
def test_their_lists_run_here_with_their_gradients(worlds, size, name):
    real = worlds[size].run(with_torch, name)
    theirs_read = Schedule.read(name, *real[0][1])
    check_schedule(theirs_read)
    schedules = [theirs_read, with_messages(theirs_read, "batched")]
    if OURS[name] is not None:
        mine = OURS[name](size, MICROS)
        assert [list(map(str, steps)) for steps in mine.steps] == [line.split() for line in real[0][1]]
    else:
        schedules.append(breadth_first(size, MICROS, 2))
    expected = {stage: grads for found, _ in real for stage, grads in found.items()}
    for schedule in schedules:
        for found in Cluster(size).run(with_ours, schedule):
            assert all(near(grads, expected[stage]) for stage, grads in found.items())
