"""A layer of 16 experts over many devices, each with its part of the tokens, against the same layer on one."""

from functools import partial

import torch

from bench.plan import Plan, progress
from bench.rounds import Work, compare, time_simulated
from lib import Group, MixtureOfExperts, RoutingRule
from lib.devices.counts import counted

EXPERTS, CHOSEN, SIZE = 16, 2, 8  # devices: the target names so many


def split_tokens(plan: Plan, group: Group) -> Work:
    """This device's experts, its tokens, and the gradient that comes from above."""
    torch.manual_seed(0)
    layer = MixtureOfExperts(plan.width, plan.width, RoutingRule(EXPERTS, CHOSEN), group)
    x, above = torch.randn(2, 2 * plan.batch * plan.tokens, plan.width)
    return layer, *(whole.tensor_split(group.size)[group.rank].contiguous() for whole in (x, above))


def measure(plan: Plan, threads: int) -> list[dict]:
    """One dict per direction, with the ratio to the one-device layer of the same round."""
    torch.set_num_threads(threads)
    split, rows = partial(split_tokens, plan), []
    variants = {("dense", 1): partial(time_simulated, 1, split, ())}
    variants["simulated", SIZE] = partial(time_simulated, SIZE, split, ())
    for backward in (False, True):
        progress(f"  experts, forward{' + backward' * backward}, {counted(threads, 'thread')} ...")
        rows += compare(variants, backward, plan, work="experts", threads=threads)
    return rows
