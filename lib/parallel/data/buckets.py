"""Gradients travel in buckets: a few large messages cost less than many small ones.

A message costs its latency, however small it is (see `lib.devices.hardware.Link`), and a model has hundreds of small
parameters. So gradients are copied one after the other into a flat tensor, and that is sent. Two ends of one scale:
a bucket for each parameter pays every latency, one bucket for all can only leave when the backward is over.
Li et al. 2020, arXiv 2006.15704, section 3.2.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20  # what PyTorch's DistributedDataParallel takes when not told otherwise


def plan_buckets(parameters: Iterable[nn.Parameter], bucket_bytes: float = BUCKET_BYTES) -> list[list[nn.Parameter]]:
    """Which parameters travel together, in the order in which the buckets are sent.

    The parameters are taken from last to first, since that is how a backward makes their gradients. A bucket holds one
    dtype and is full once it has `bucket_bytes`: 0 gives each parameter a bucket of its own, `math.inf` one per dtype.
    """
    if isinstance(bucket_bytes, bool) or not isinstance(bucket_bytes, int | float) or not bucket_bytes >= 0:
        raise ValueError(f"bucket_bytes={bucket_bytes!r} must be a number of bytes, at least 0")
    full: list[list[nn.Parameter]] = []
    filling: dict[torch.dtype, list[nn.Parameter]] = {}
    for p in reversed(list(parameters)):
        bucket = filling.setdefault(p.dtype, [])
        bucket.append(p)
        if sum(q.numel() * q.element_size() for q in bucket) >= bucket_bytes:
            full.append(filling.pop(p.dtype))
    return [*full, *filling.values()]


def pack(bucket: list[nn.Parameter], share: float) -> Tensor:
    """The gradients of `bucket` times `share`, in one flat tensor (n,); zeros where there is no gradient.

    Raises TypeError for a sparse gradient.
    """
    first = bucket[0]
    flat = torch.empty(sum(p.numel() for p in bucket), dtype=first.dtype, device=first.device)  # (n,)
    for p, piece in zip(bucket, views(flat, [p.shape for p in bucket]), strict=True):
        if p.grad is None:
            piece.zero_()
        elif p.grad.is_sparse:
            raise TypeError(f"the gradient of a {tuple(p.shape)} parameter is sparse: use nn.Embedding(sparse=False)")
        else:
            torch.mul(p.grad.detach(), share, out=piece)  # scaled on the way: a pass of its own would cost time
    return flat


def unpack(flat: Tensor, bucket: list[nn.Parameter]) -> None:
    """The reverse: the pieces of `flat` become the gradients. They are views, so nothing is copied."""
    for p, piece in zip(bucket, views(flat, [p.shape for p in bucket]), strict=True):
        p.grad = piece


def views(flat: Tensor, shapes: Iterable[torch.Size]) -> list[Tensor]:
    """(n,) -> tensors of these shapes, which lie in it one after the other. Views, nothing is copied."""
    shapes = list(shapes)
    return [x.view(shape) for x, shape in zip(flat.split([shape.numel() for shape in shapes]), shapes, strict=True)]
