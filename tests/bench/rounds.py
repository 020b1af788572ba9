"""What all comparisons of layers share: one step, the clocks around it, and interleaved rounds."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from bench.plan import Plan, Reading, now, spent, summary
from lib import Cluster, Group

Work = tuple[nn.Module, Tensor, Tensor]  # a model, its input, and the gradient that comes from above
Timer = Callable[[bool, int], Reading]  # of (backward, steps)


def step(model: nn.Module, x: Tensor, above: Tensor, backward: bool) -> Tensor:
    """One forward, or one forward + backward with the gradients of weights and input. Returns the last of both."""
    if not backward:
        with torch.no_grad():
            return model(x)
    model.zero_grad()
    if not x.is_floating_point():  # tokens have no gradient; that of the first weight comes last, too
        model(x).backward(above)
        return next(model.parameters()).grad
    x = x.detach().requires_grad_()
    model(x).backward(above)
    return x.grad


def in_one_run(group: Group, split: Callable[..., Work], dense: Work, backward: bool, steps: int):
    """The program of one device: `split(group, *dense)`, its part of the work, is made and warmed up off the clock."""
    mine = split(group, *dense)
    step(*mine, backward)
    group.barrier()
    start = now()
    for _ in range(steps):
        step(*mine, backward)
    return start, now()


def time_dense(dense: Work, backward: bool, steps: int) -> Reading:
    step(*dense, backward)  # warms up, as all others do
    start = now()
    for _ in range(steps):
        step(*dense, backward)
    return spent([(start, now())])


def time_simulated(size: int, split: Callable[..., Work], dense: Work, backward: bool, steps: int) -> Reading:
    return spent(Cluster(size).run(in_one_run, split, dense, backward, steps))


def compare(variants: Mapping[tuple[str, int], Timer], backward: bool, plan: Plan, **labels) -> Iterable[dict]:
    """One row per (how, devices), with its ratio to ("dense", 1) in the same round."""
    timed = interleaved(variants, backward, plan)
    for (how, size), samples in timed.items():
        pairs = list(zip(samples, timed["dense", 1], strict=True))
        yield {
            **labels, "backward": backward, "how": how, "devices": size,
            "ratio": summary([sample.wall / base.wall for sample, base in pairs]),
            "cpu ratio": summary([sample.cpu / base.cpu for sample, base in pairs]),
            "milliseconds": summary([1e3 * sample.wall / plan.steps for sample in samples]),
            "faults": summary([sample.faults / plan.steps for sample in samples]),
        }  # fmt: skip


def interleaved(variants: Mapping[tuple[str, int], Timer], backward: bool, plan: Plan) -> dict:
    """A B C ... A B C ...: what disturbs the machine for a while disturbs all alike. What warms up is thrown away."""
    timed = {name: [] for name in variants}
    for round_ in range(-plan.warm_up, plan.rounds):
        for name, run in variants.items():
            sample = run(backward, plan.steps)
            if round_ >= 0:
                timed[name].append(sample)
    return timed
