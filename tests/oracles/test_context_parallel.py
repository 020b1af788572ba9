"""Ring attention against PyTorch's own, run by real processes: its ring, its merging, and its cut that is balanced.

`context_parallel` itself knows the kernels of GPUs only, and refuses a CPU. The ring behind it takes the kernel as an
argument, so it runs on gloo with the CPU's.
"""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor.experimental._context_parallel import _attention as theirs

from lib import CutTokens, RingAttention
from lib.devices import Cluster

aten = torch.ops.aten
KERNEL = aten._scaled_dot_product_flash_attention_for_cpu
KERNEL_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward
LENGTH = 24


def forward_kernel(query, key, value, is_causal=False):
    return KERNEL(query, key, value, 0.0, is_causal)


def backward_kernel(grad_out, query, key, value, out, logsumexp, is_causal):
    return KERNEL_BACKWARD(grad_out, query, key, value, out, logsumexp, 0.0, is_causal)


def pytorch_s_ring(pieces, causal, balanced):
    """Output and gradients of this process' tokens."""
    q, k, v, above = pieces[dist.get_rank()]
    options = theirs._cp_options
    options.convert_to_f32, options.enable_load_balance = False, balanced
    group = dist.group.WORLD
    out, lse = theirs._templated_ring_attention(group, 2, forward_kernel, q, k, v, causal)
    grads = theirs._templated_ring_attention_backward(
        group, 2, backward_kernel, above, "grad_out", q, k, v, out, lse, causal
    )
    return out, *grads[:3]


def our_ring(group, pieces, causal, order):
    *qkv, above = pieces[group.rank]
    qkv = [x.clone().requires_grad_() for x in qkv]
    y = RingAttention(group, LENGTH, order)(*qkv, causal)
    y.backward(above)
    return y.detach(), *(x.grad for x in qkv)


@pytest.mark.parametrize(("causal", "order"), [(True, "zigzag"), (True, "contiguous"), (False, "contiguous")])
def test_pytorch_s_ring_gives_the_same(world, causal, order):
    cut, inputs = CutTokens(order, 2), torch.randn(4, 2, 4, LENGTH, 8, dtype=torch.float64)
    pieces = [[cut.piece(x, world.size, rank) for x in inputs] for rank in range(world.size)]
    expected = world.run(pytorch_s_ring, pieces, causal, order == "zigzag")
    found = Cluster(world.size).run(our_ring, pieces, causal, order)
    for rank, pair in enumerate(zip(found, expected, strict=True)):
        for name, x, y in zip(("out", "dq", "dk", "dv"), *pair, strict=True):
            torch.testing.assert_close(x, y, atol=1e-12, rtol=1e-12, msg=lambda m, n=name, r=rank: f"{n} on {r}: {m}")


def context_parallel_on_a_cpu():
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    q, k, v = (torch.randn(1, 2, 4, 8) for _ in range(3))
    try:
        with theirs.context_parallel(mesh, buffers=[q, k, v], buffer_seq_dims=[2, 2, 2]):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    except Exception as error:
        return type(error).__name__
    return "it runs"


def test_why_the_context_manager_is_no_oracle_here(worlds):
    """When this fails, PyTorch has learned it, and the oracle above can be the public one."""
    assert set(worlds[2].run(context_parallel_on_a_cpu)) != {"it runs"}
