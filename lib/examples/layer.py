"""One transformer layer, forward and backward: the program of one device, for `Cluster`, `Processes` and `torchrun`."""

import torch
from torch import Tensor

from lib import ParallelBlock, SequenceBlock, shard
from lib.devices import Group


def layer(
    group: Group, hidden: int, heads: int, batch: int, length: int, sequence_parallel: bool = False
) -> dict[str, Tensor]:
    """Returns this device's output, the gradient of its input, and the gradients of its weights, by name."""
    torch.manual_seed(0)
    x = torch.randn(batch, length, hidden)  # (B, S, h)  Replicate: the same on all devices
    if sequence_parallel:
        x = shard(x, group, 1)  # (B, S/P, h)  Shard(1)
    x.requires_grad_()
    block = (SequenceBlock if sequence_parallel else ParallelBlock)(hidden, heads, group)
    y = block(x)
    (y.square().sum() / 2).backward()
    gradients = {name: p.grad for name, p in block.named_parameters()}
    return {"output": y.detach(), "input": x.grad, **gradients}
