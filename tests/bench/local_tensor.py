"""PyTorch's own simulation in one process: every operation done for each device in turn, on a `LocalTensor` of all."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._local_tensor import LocalTensor, LocalTensorMode

from bench.plain import Split, pieces
from bench.plan import Reading
from bench.rounds import Work, time_dense


def time_local_tensor(size: int, split: Split, dense: Work, backward: bool, steps: int) -> Reading:
    with local_tensors(size):
        return time_dense(work_of_all(size, split, dense), backward, steps)


@contextmanager
def local_tensors(size: int) -> Iterator[None]:
    """Inside, collectives go to a group of `size` processes that do not exist, and act on the pieces instead."""
    dist.init_process_group("fake", rank=0, world_size=size)
    try:
        with LocalTensorMode(size):
            yield
    finally:
        dist.destroy_process_group()


def work_of_all(size: int, split: Split, dense: Work) -> Work:
    """The model with the weights of all devices, its input and its gradient from above."""

    def cut(whole: Tensor, dim: int | None) -> nn.Parameter:
        return nn.Parameter(LocalTensor(dict(enumerate(pieces(whole, dim, size)))))

    model, *data = dense
    return split(model, cut), *(LocalTensor(dict.fromkeys(range(size), x)) for x in data)
