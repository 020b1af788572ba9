"""Sharded layers against dense ones: forward, and forward + backward, in simulated devices and in real processes."""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from bench.plain import PlainMLP
from bench.plan import Plan, Reading, now, progress, spent
from bench.processes import Processes
from bench.rounds import Work, compare, step, time_dense, time_simulated
from lib import Cluster, ColumnParallelLinear, Group, RowParallelLinear, shard
from lib.devices.counts import counted

WORKS = ("column", "row", "MLP")


def dense_work(work: str, plan: Plan) -> Work:
    """The dense model, its input, and the gradient that comes from above."""
    torch.manual_seed(0)
    wide, narrow = (plan.batch, plan.tokens, plan.hidden), (plan.batch, plan.tokens, plan.width)
    if work == "column":
        return nn.Linear(plan.width, plan.hidden), torch.randn(narrow), torch.randn(wide)
    if work == "row":
        return nn.Linear(plan.hidden, plan.width), torch.randn(wide), torch.randn(narrow)
    mlp = nn.Sequential(nn.Linear(plan.width, plan.hidden), nn.GELU(), nn.Linear(plan.hidden, plan.width))
    return mlp, torch.randn(narrow), torch.randn(narrow)


def device_work(work: str, group: Group, model: nn.Module, x: Tensor, above: Tensor) -> Work:
    """The same for one device: its layers, its input, its gradient from above."""
    if work == "column":  # the output stays sharded, and so does its gradient
        return ColumnParallelLinear.from_dense(model, group), x, shard(above, group, -1).contiguous()
    if work == "row":
        return RowParallelLinear.from_dense(model, group), shard(x, group, -1).contiguous(), above
    up, gelu, down = model
    enter, leave = ColumnParallelLinear.from_dense(up, group), RowParallelLinear.from_dense(down, group)
    return nn.Sequential(enter, gelu, leave), x, above


def rebuilt(group: Group, work: str, dense: Work, backward: bool) -> Tensor:
    """The program for a fresh run per step: layers that share the memory of the dense weights."""
    with torch.no_grad():
        mine = device_work(work, group, *dense)
    return step(*mine, backward)


def time_fresh(size: int, work: str, dense: Work, backward: bool, steps: int) -> Reading:
    start = now()
    for _ in range(steps):
        Cluster(size).run(rebuilt, work, dense, backward)
    return spent([(start, now())])


def measure(plan: Plan, threads: int, processes: bool) -> list[dict]:
    """One dict per work, direction and variant, with the ratio to the dense time of the same round."""
    torch.set_num_threads(threads)
    rows = []
    for work in WORKS:
        dense = dense_work(work, plan)
        with ExitStack() as opened:
            real = {}
            if processes and work == "MLP":
                for size in plan.processes:
                    real[size] = opened.enter_context(Processes(size, max(1, threads // size), PlainMLP, dense))
            for backward in (False, True):
                progress(f"  {work}, forward{' + backward' * backward}, {counted(threads, 'thread')} ...")
                split = partial(device_work, work)
                variants = {("simulated", n): partial(time_simulated, n, split, dense) for n in plan.devices}
                if work == "MLP":
                    variants |= {("fresh run per step", n): partial(time_fresh, n, work, dense) for n in plan.devices}
                variants |= {("processes", n): team.time for n, team in real.items()}
                variants = {("dense", 1): partial(time_dense, dense), **variants}
                rows += compare(variants, backward, plan, work=work, threads=threads)
    return rows
