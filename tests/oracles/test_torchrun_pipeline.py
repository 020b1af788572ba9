"""The same worker in real processes: the same gradients to the last bit, and the same bytes."""

import pytest
import torch
from parallel.pipeline.pipelines import batch, gradients

from lib import Cluster, Processes, one_f_one_b, zb_v


def both_schedules(group):
    """A program of one process: both schedules, one after the other."""
    tokens, targets = batch()
    return [gradients(group, make(group.size, 4), tokens, targets) for make in (one_f_one_b, zb_v)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_simulated_and_real():
    simulated, real = Cluster(2), Processes(2)
    for ours, theirs in zip(simulated.run(both_schedules), real.run(both_schedules), strict=True):
        for (losses, grads), (real_losses, real_grads) in zip(ours, theirs, strict=True):
            assert losses.keys() == real_losses.keys()
            assert all(torch.equal(losses[k], real_losses[k]) for k in losses)
            assert grads.keys() == real_grads.keys()
            assert all(torch.equal(grads[name], real_grads[name]) for name in grads)
    assert simulated.meters.rows() == real.meters.rows()
