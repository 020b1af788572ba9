"""Attention of DTensors, whose kernel for the CPU PyTorch does not know how to shard, as it does with those for GPUs.

`context_parallel` knows no such kernel either; its ring takes any.

Heads are independent of each other, and so are the samples of a batch: both may be cut. Shapes (B, H, T, D).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from lib.guest.private_dtensors import (
    ring_attention,
    ring_attention_backward,
    shardings_of,
    within_context_parallel,
)

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


TOKENS = 2  # the dimension that context parallelism cuts


def _on_a_ring(operation: Any, args: tuple, kwargs: dict) -> tuple[DTensor, ...]:
    """The forward of each device's tokens, among those of the others."""
    q, k, v, *more = args
    dropout_p, is_causal = (*more, 0.0, False)[:2]
    return _of_tokens(q, ring_attention, operation, q, k, v, is_causal, dropout_p=dropout_p, **_without_mask(kwargs))


def _on_a_ring_backward(operation: Any, args: tuple, kwargs: dict) -> tuple[DTensor, ...]:
    grad, q, k, v, out, logsumexp, dropout_p, is_causal = args
    more = {"dropout_p": dropout_p, **_without_mask(kwargs)}
    given = operation, grad, "grad_out", q, k, v, out, logsumexp, is_causal
    return _of_tokens(q, ring_attention_backward, *given, **more)


def _of_tokens(like: DTensor, ring: Callable, *given: Any, **more: Any) -> tuple[DTensor, ...]:
    """What the `ring` makes of the pieces of this device, cut as `like` is."""
    mesh, cut = like.device_mesh, like.placements
    pieces = [x.to_local() if isinstance(x, DTensor) else x for x in given]
    return tuple(DTensor.from_local(x, mesh, cut) for x in ring(mesh.get_group(), TOKENS, *pieces, **more))


def _without_mask(kwargs: dict) -> dict:
    if kwargs.get("attn_mask") is not None:
        raise NotImplementedError("context_parallel: attn_mask is not supported, is_causal is. PyTorch says so too")
    return {"scale": kwargs.get("scale")}


@contextmanager
def sharded_attention() -> Iterator[None]:
    """While entered, `scaled_dot_product_attention` of DTensors runs on the CPU, too."""
    on_heads = shardings_of(
        _scaled_dot_product_flash_attention_for_cpu=forward,
        _scaled_dot_product_flash_attention_for_cpu_backward=backward,
    )
    on_tokens = within_context_parallel(
        _scaled_dot_product_flash_attention_for_cpu=_on_a_ring,
        _scaled_dot_product_flash_attention_for_cpu_backward=_on_a_ring_backward,
    )
    with on_heads, on_tokens:
        yield
