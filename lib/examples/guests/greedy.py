"""A training loop that averages gradients by hand, and looks at everybody's logits."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    model = nn.Linear(32, 100)
    for parameter in model.parameters():
        dist.broadcast(parameter.data, src=0)  # A
    for _ in range(4):
        x, y = torch.randn(8, 32), torch.randint(100, (8,))
        logits = model(x)
        loss = cross_entropy(logits, y)
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad, op=dist.ReduceOp.AVG)  # B
        everyones = [torch.empty_like(logits) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, logits.detach())  # C
        mean = loss.detach().clone()
        dist.all_reduce(mean, op=dist.ReduceOp.AVG)  # D
        model.zero_grad()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
