"""Sharded layers against dense ones: forward, and forward + backward, in simulated devices and in real processes."""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from bench.plan import Plan, Reading, now, progress, spent, summary
from bench.processes import Processes
from lib import Cluster, ColumnParallelLinear, Group, RowParallelLinear, shard

WORKS = ("column", "row", "MLP")


def dense_work(work: str, plan: Plan) -> tuple[nn.Module, Tensor, Tensor]:
    """The dense model, its input, and the gradient that comes from above."""
    torch.manual_seed(0)
    wide, narrow = (plan.batch, plan.tokens, plan.hidden), (plan.batch, plan.tokens, plan.width)
    if work == "column":
        return nn.Linear(plan.width, plan.hidden), torch.randn(narrow), torch.randn(wide)
    if work == "row":
        return nn.Linear(plan.hidden, plan.width), torch.randn(wide), torch.randn(narrow)
    mlp = nn.Sequential(nn.Linear(plan.width, plan.hidden), nn.GELU(), nn.Linear(plan.hidden, plan.width))
    return mlp, torch.randn(narrow), torch.randn(narrow)


def device_work(
    work: str, group: Group, model: nn.Module, x: Tensor, above: Tensor
) -> tuple[nn.Module, Tensor, Tensor]:
    """The same for one device: its layers, its input, its gradient from above."""
    if work == "column":  # the output stays sharded, and so does its gradient
        return ColumnParallelLinear.from_dense(model, group), x, shard(above, group, -1).contiguous()
    if work == "row":
        return RowParallelLinear.from_dense(model, group), shard(x, group, -1).contiguous(), above
    up, gelu, down = model
    enter, leave = ColumnParallelLinear.from_dense(up, group), RowParallelLinear.from_dense(down, group)
    return nn.Sequential(enter, gelu, leave), x, above


def step(model: nn.Module, x: Tensor, above: Tensor, backward: bool) -> Tensor:
    """One forward, or one forward + backward with the gradients of weights and input. Returns the last of both."""
    if not backward:
        with torch.no_grad():
            return model(x)
    model.zero_grad()
    x = x.detach().requires_grad_()
    model(x).backward(above)
    return x.grad


def in_one_run(group: Group, work: str, dense: tuple, backward: bool, steps: int):
    """The program of one device: builds its layers and warms up outside of the clock."""
    mine = device_work(work, group, *dense)
    step(*mine, backward)
    group.barrier()
    start = now()
    for _ in range(steps):
        step(*mine, backward)
    return start, now()


def rebuilt(group: Group, work: str, dense: tuple, backward: bool) -> Tensor:
    """The program for a fresh run per step: layers that share the memory of the dense weights."""
    with torch.no_grad():
        mine = device_work(work, group, *dense)
    return step(*mine, backward)


def time_dense(dense: tuple, backward: bool, steps: int) -> Reading:
    step(*dense, backward)  # warms up, as all others do
    start = now()
    for _ in range(steps):
        step(*dense, backward)
    return spent([(start, now())])


def time_simulated(size: int, work: str, dense: tuple, backward: bool, steps: int) -> Reading:
    return spent(Cluster(size).run(in_one_run, work, dense, backward, steps))


def time_fresh(size: int, work: str, dense: tuple, backward: bool, steps: int) -> Reading:
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
                    real[size] = opened.enter_context(Processes(size, max(1, threads // size), dense))
            for backward in (False, True):
                progress(f"  {work}, forward{' + backward' * backward}, {threads} thread(s) ...")
                variants = {("simulated", n): partial(time_simulated, n, work, dense) for n in plan.devices}
                if work == "MLP":
                    variants |= {("fresh run per step", n): partial(time_fresh, n, work, dense) for n in plan.devices}
                variants |= {("processes", n): team.time for n, team in real.items()}
                timed = interleaved({("dense", 1): partial(time_dense, dense), **variants}, backward, plan)
                for (how, size), samples in timed.items():
                    pairs = list(zip(samples, timed["dense", 1], strict=True))
                    rows.append({
                        "work": work, "backward": backward, "how": how, "devices": size, "threads": threads,
                        "ratio": summary([sample.wall / base.wall for sample, base in pairs]),
                        "cpu ratio": summary([sample.cpu / base.cpu for sample, base in pairs]),
                        "milliseconds": summary([1e3 * sample.wall / plan.steps for sample in samples]),
                        "faults": summary([sample.faults / plan.steps for sample in samples]),
                    })  # fmt: skip
    return rows


def interleaved(variants: dict, backward: bool, plan: Plan) -> dict:
    """A B C ... A B C ...: what disturbs the machine for a while disturbs all alike. A first round is thrown away."""
    timed = {name: [] for name in variants}
    for round_ in range(plan.rounds + 1):
        for name, run in variants.items():
            sample = run(backward, plan.steps)
            if round_:
                timed[name].append(sample)
    return timed
