"""Which gradients are summed over which devices, and by what factor: none.

A device's loss is the mean over its own tokens. The loss of the batch is the sum of the devices' losses, each times its
share of the tokens. So every device multiplies its loss by its share before the backward, and from there on gradients
are sums:

    an expert    has met the tokens of all devices that send to it: its gradient is summed over its replicas
    all else     has met this device's own tokens: its gradient is summed over the batch

Averaging instead, over each one's own group, looks as natural and is wrong: an expert is averaged over its replicas
alone, P / EP devices, while its gradient holds the losses of P. It comes out EP times too large.

    (share * loss).backward()
    sum_gradients(model, grid)
    clip by gradient_norm_on(model, grid), and step
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lib.devices import Group
from lib.parallel.data.buckets import BUCKET_BYTES, pack, plan_buckets, unpack
from lib.parallel.data.samples import check_samples
from lib.parallel.experts.grid import ExpertGrid, ShardExperts
from lib.parallel.sharding.dense import layout_of
from lib.parallel.sharding.named import named
from lib.parallel.sharding.placement import Replicate


@named
def sum_gradients(model: nn.Module, grid: ExpertGrid, bucket_bytes: float = BUCKET_BYTES) -> None:
    """After the backward of each device's share of the loss: gradients become those of one device.

    Communication: one all-reduce per bucket, those of experts over the replicas, all others over the batch. What the
    tensor group shares, its layers have summed already. Raises ValueError when a gradient is missing, or a layer does
    not treat each sample by itself.
    """
    who = f"sum_gradients on rank {grid.everyone.rank} of {grid.everyone.size}"
    check_samples(model, grid.batch, who)
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if missing:
        raise ValueError(
            f"{who}: no gradient reached {', '.join(missing)}. Call (share * loss).backward() first, or freeze them "
            "with requires_grad_(False)"
        )
    sharded = [name for name, p in model.named_parameters() if hasattr(p, "origin") and p.origin.devices > 1]
    if sharded:
        raise ValueError(
            f"{who}: {', '.join(sharded[:3])} was cut by FullySharded, and its pieces would be mixed: beside experts, "
            "take ShardedOptimizer"
        )
    divided = {p: is_divided(layout) for p, layout in _parameters(model) if p.requires_grad}
    for is_expert, group in ((True, grid.replicas), (False, grid.batch)):
        parameters = [p for p in divided if divided[p] == is_expert]
        for bucket in plan_buckets(parameters, bucket_bytes):
            unpack(group.all_reduce(pack(bucket, 1.0)), bucket)  # (n,)  Partial -> Replicate over that group


@torch.no_grad()
def gradient_norm_on(model: nn.Module, grid: ExpertGrid) -> Tensor:
    """The norm of the whole model's gradient, () float64, the same on all devices. One all-reduce of 8 bytes.

    Every element counts once. A device does not know which of the holders of a piece is the one to count it, so each
    counts its part: one over the number of holders.
    """
    total = torch.zeros((), dtype=torch.float64)
    for p, layout in _parameters(model):
        if p.grad is not None:
            square = torch.linalg.vector_norm(p.grad, dtype=torch.float64).square()
            total = total.to(p.device) + square / _holders(layout, grid)
    return grid.everyone.all_reduce(total).sqrt()


def is_divided(layout: object) -> bool:
    """Whether the devices of the batch hold different experts of it."""
    return isinstance(layout, ShardExperts) and layout.experts > 1


def group_of(layout: object, grid: ExpertGrid) -> Group:
    """The devices over which the gradient of a weight that lies like this is summed."""
    return grid.replicas if is_divided(layout) else grid.batch


def _holders(layout: object, grid: ExpertGrid) -> int:
    """How many devices hold the same piece."""
    return group_of(layout, grid).size * (grid.tensor.size if isinstance(layout, Replicate) else 1)


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Parameter, object]]:
    return ((p, layout_of(model, name)) for name, p in model.named_parameters())
