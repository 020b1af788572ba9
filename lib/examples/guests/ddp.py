"""A small network, trained by DistributedDataParallel."""

import argparse
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP


def main():
    parser = argparse.ArgumentParser()
    for name, value in {"samples": 130, "epochs": 2, "width": 256, "layers": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)  # the same data everywhere
    inputs = torch.randn(args.samples, 64)
    targets = inputs.sum(1, keepdim=True).sin()
    inputs, targets = inputs[rank::world], targets[rank::world]  # my samples

    sizes = [64, *[args.width] * args.layers]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    model = DDP(nn.Sequential(*hidden, nn.Linear(args.width, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(args.epochs):
        for x, y in zip(inputs.split(16), targets.split(16), strict=True):
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if rank == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
