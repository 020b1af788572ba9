"""A training step on a grid in real processes: the same losses, norms and weights, and the same bytes."""

import torch
from oracles.agree import agree
from parallel.grid.test_grid_trainer import DENSE, train
from parallel.small_model import one_thread  # noqa: F401

from lib import ParallelConfig

GRIDS = (
    ParallelConfig(dp=2, tp=2, sequence_parallel=True, zero=1),
    ParallelConfig(pp=2, cp=2, micro_batches=2, chunks=2),
)


def both_grids(group):
    """A program of one process: a step on each grid."""
    default = torch.get_default_dtype()
    told = [train(group, config, DENSE, steps=1, clip=0.5) for config in GRIDS]
    torch.set_default_dtype(default)
    return told


def test_simulated_and_real():
    agree(both_grids, 4)
