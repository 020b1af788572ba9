"""Attention of DTensors, whose kernel for the CPU PyTorch does not know how to shard, as it does with those for GPUs.

Heads are independent of each other, and so are the samples of a batch: both may be cut. Shapes (B, H, T, D).
"""

from contextlib import AbstractContextManager
from typing import Any

from torch.distributed.tensor import Placement, Replicate, Shard

from lib.guest.private_dtensors import shardings_of

Sharding = tuple[list[Placement], list[Placement | None]]


def _alike(outputs: int, tensors: int, mask: Any) -> list[Sharding]:
    """All tensors cut alike. A mask may lack heads and batch, so it is left to those who have all of it."""
    cuts = (Replicate(),) if mask is not None else (Replicate(), Shard(0), Shard(1))
    return [([cut] * outputs, [cut] * (tensors + (mask is not None))) for cut in cuts]


def forward(q: Any, k: Any, v: Any, dropout_p: float = 0.0, is_causal: bool = False, *, attn_mask: Any = None,
            scale: float | None = None) -> list[Sharding]:  # fmt: skip
    """Output and log-sum-exp."""
    return _alike(2, 3, attn_mask)


def backward(grad: Any, q: Any, k: Any, v: Any, out: Any, logsumexp: Any, dropout_p: float, is_causal: bool, *,
             attn_mask: Any = None, scale: float | None = None) -> list[Sharding]:  # fmt: skip
    """Gradients of q, k, v."""
    return _alike(3, 6, attn_mask)


def sharded_attention() -> AbstractContextManager[None]:
    """While entered, `scaled_dot_product_attention` of DTensors runs on the CPU, too."""
    return shardings_of(
        _scaled_dot_product_flash_attention_for_cpu=forward,
        _scaled_dot_product_flash_attention_for_cpu_backward=backward,
    )
