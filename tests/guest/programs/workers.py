"""Processes of libraries: the workers of a DataLoader and a pool. They call no collective, and stay real."""

import multiprocessing

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset


def square(x):
    return x * x


if __name__ == "__main__":
    dist.init_process_group("gloo")
    batches = DataLoader(TensorDataset(torch.arange(4.0)), batch_size=2, num_workers=1)
    total = torch.stack([batch.sum() for (batch,) in batches]).sum()
    with multiprocessing.Pool(1) as pool:
        squares = pool.map(square, [1, 2, 3])
    dist.all_reduce(total)
    print(squares, total.item())
