"""The results of a collective share their memory until a device writes: then it has its own, whatever way it writes."""

import numpy as np
import pytest
import torch

from lib import Cluster

VERBS = {
    "all_reduce": lambda group, x: group.all_reduce(x),
    "all_gather": lambda group, x: group.all_gather(x),
    "broadcast": lambda group, x: group.broadcast(x),
}


def by_sgd(y):
    y.requires_grad_()
    y.grad = torch.ones_like(y)
    torch.optim.SGD([y], lr=1.0).step()


WAYS = {
    "in place": lambda y: y.add_(1),
    "an element": lambda y: y.__setitem__(0, 5.0),
    "a view": lambda y: y.view(2, -1)[0].mul_(7),
    "a piece": lambda y: y.chunk(2)[1].zero_(),
    "out=": lambda y: torch.mul(y, 2, out=y),
    "data": lambda y: y.data.fill_(3),
    "copy_": lambda y: y.copy_(torch.zeros_like(y)),
    "foreach": lambda y: torch._foreach_add_([y], 1.0),
    "numpy": lambda y: np.add(y.numpy(), 1, out=y.numpy()),
    "dlpack": lambda y: torch.from_dlpack(y).neg_(),
    "its storage": lambda y: y.untyped_storage().fill_(1),
    "random": lambda y: y.normal_(),
    "an optimizer": by_sgd,
}


@pytest.mark.parametrize("writer", [0, 2])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("verb", VERBS)
def test_what_one_device_writes_no_other_sees(verb, way, writer):
    def program(group):
        brought = torch.arange(8.0) + group.rank
        y = VERBS[verb](group, brought)
        before = y.tolist()
        if group.rank == writer:
            WAYS[way](y)
        group.barrier()
        return before, y.tolist(), brought.tolist()

    for rank, (before, after, brought) in enumerate(Cluster(3).run(program)):
        assert (before != after) == (rank == writer)
        assert brought == [i + rank for i in range(8)]  # the sender's own is not touched either
