"""SyncBatchNorm's kernels, which PyTorch has for GPUs only, written for the CPU.

The layer itself stays PyTorch's own, and so do its messages: an all-gather of 2C + 1 numbers forward, an all-reduce of
2C numbers backward. Inputs are (N, C, ...); per-channel figures are (C,).
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel

from lib.guest.private_tensors import BatchNorm, SyncedByMessages


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean of each channel over this device's batch, and 1 / standard deviation."""
    rows = _rows(x)
    return rows.mean(1), (rows.var(1, correction=0) + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x: Tensor, means: Tensor, invstds: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    momentum: float, eps: float, counts: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same over all devices' batches, from theirs: `means` and `invstds` (P, C), `counts` (P,) rows each."""
    total, counts = counts.sum(), counts.view(-1, 1).to(means.dtype)
    mean = (means * counts).sum(0) / total
    squares = ((invstds**-2 - eps + (means - mean) ** 2) * counts).sum(0)  # of the distances from the common mean
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((squares / (total - 1)).to(running_var.dtype), momentum)
    return mean, (squares / total + eps).rsqrt()


def batch_norm_elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    """weight * (x - mean) / standard deviation + bias"""
    out = (x - _wide(mean, x)) * _wide(invstd, x)
    if weight is not None:
        out = out * _wide(weight, x)
    return (out if bias is None else out + _wide(bias, x)).to(x.dtype)


def batch_norm_backward_reduce(
    grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, *needed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over this device's batch, of the gradient and of it times (x - mean); the gradients of weight and bias."""
    dy = _rows(grad)
    sum_dy, sum_dy_xmu = dy.sum(1), (dy * (_rows(x) - mean.view(-1, 1))).sum(1)
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy


def batch_norm_backward_elemt(
    grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, sum_dy: Tensor, sum_dy_xmu: Tensor,
    counts: Tensor,
) -> Tensor:  # fmt: skip
    """The gradient of x, from the sums over all devices' batches."""
    total = counts.sum()
    centred = (x - _wide(mean, x)) * _wide(invstd**2 * sum_dy_xmu / total, x)
    scale = invstd if weight is None else invstd * weight
    return ((grad - _wide(sum_dy / total, x) - centred) * _wide(scale, x)).to(x.dtype)


def _rows(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1)  # (C, all else)


def _wide(channels: Tensor, x: Tensor) -> Tensor:
    return channels.view(1, -1, *[1] * (x.ndim - 2))


def forward(self: SyncBatchNorm, x: Tensor) -> Tensor:
    """SyncBatchNorm.forward without its question whether `x` lies on a GPU."""
    group = self.process_group or dist.group.WORLD
    if not (self.training and dist.is_initialized() and dist.get_world_size(group) > 1):
        return BatchNorm.forward(self, x)
    self._check_input_dim(x)
    self._check_non_zero_input_channels(x)
    mean = var = None
    momentum = 0.0 if self.momentum is None else self.momentum
    if self.track_running_stats:
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else momentum
        mean, var = self.running_mean, self.running_var
    return SyncedByMessages.apply(
        x, self.weight, self.bias, mean, var, self.eps, momentum, group, dist.get_world_size(group)
    )


def patches() -> Iterator[tuple[Any, str, Any]]:
    """Where these functions stand while GPUs are pretended."""
    for kernel in (batch_norm_stats, batch_norm_gather_stats_with_counts, batch_norm_elemt, batch_norm_backward_reduce,
                   batch_norm_backward_elemt):  # fmt: skip
        yield torch, kernel.__name__, kernel
    yield SyncBatchNorm, "forward", forward
    # DDP asks too, and only that.
    yield DistributedDataParallel, "_passing_sync_batchnorm_handle", lambda ddp, module: None
