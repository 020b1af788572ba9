"""A GPT-2 block on many devices against the dense one: ours, the least possible, LocalTensor, and real processes."""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from bench.dense import DenseBlock
from bench.in_a_row import time_in_a_row
from bench.local_tensor import time_local_tensor
from bench.plain import PlainBlock
from bench.plan import Plan, progress
from bench.processes import Processes
from bench.rounds import Work, compare, time_dense, time_simulated
from lib import Group, ParallelBlock, SequenceBlock, load_dense, shard
from lib.devices.counts import counted

SEQUENCE = 1  # the dim of (batch, tokens, width) that sequence parallelism cuts


def dense_block(plan: Plan) -> Work:
    """The dense block, its input, and the gradient that comes from above."""
    torch.manual_seed(0)
    x, above = torch.randn(2, plan.batch, plan.tokens, plan.width)
    return DenseBlock(plan.width, plan.heads, plan.tokens), x, above


def device_block(sequence: bool, heads: int, group: Group, model: DenseBlock, x: Tensor, above: Tensor) -> Work:
    """The same for one device; with `sequence`, input and gradient are its own tokens."""
    with torch.device("meta"):  # the weights come from the dense block: random ones would only take time
        mine = (SequenceBlock if sequence else ParallelBlock)(x.shape[-1], heads, group)
    mine.to_empty(device="cpu")
    load_dense(mine, model.state_dict(), group)
    if sequence:
        x, above = (shard(whole, group, SEQUENCE).contiguous() for whole in (x, above))
    return mine, x, above


def measure(plan: Plan, threads: int, processes: bool) -> list[dict]:
    """One dict per direction and variant, with the ratio to the dense time of the same round."""
    torch.set_num_threads(threads)
    dense, rows = dense_block(plan), []
    with ExitStack() as opened:
        variants = {("dense", 1): partial(time_dense, dense)}
        for how, sequence in (("TP", False), ("TP + SP", True)):
            split = partial(device_block, sequence, plan.heads)
            variants |= {(how, n): partial(time_simulated, n, split, dense) for n in plan.in_block}
            several = [n for n in plan.in_block if n > 1]
            variants |= {(f"{how}, in a row", n): partial(time_in_a_row, n, split, dense) for n in several}
        for n in plan.local_tensor:
            variants["LocalTensor, TP", n] = partial(time_local_tensor, n, PlainBlock, dense)
        for n in plan.processes if processes else ():
            team = opened.enter_context(Processes(n, max(1, threads // n), PlainBlock, dense))
            variants["processes, TP", n] = team.time
        for backward in (False, True):
            progress(f"  GPT-2 block, forward{' + backward' * backward}, {counted(threads, 'thread')} ...")
            rows += compare(variants, backward, plan, work="GPT-2 block", threads=threads)
    return rows
