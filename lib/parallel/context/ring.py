"""Ring attention: the keys and values travel, and every device's queries meet all of them in P hops.

    hop 0             own keys                    each hop: attend to what is here, while it goes on to the next device
    hop h             the keys of device r - h    and that of the device before comes in

Nobody ever holds more than two pieces. In the backward the keys and values make the same trip. Behind each travels the
sum of its gradients: every device that the keys pass adds what its own queries say, and sends the sum on. The device
before their owner is the last, so the sum comes home after P - 1 hops, to the share that has waited there.

Liu et al. 2023, arXiv 2310.01889; Li et al. 2021, arXiv 2105.13120.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from lib.parallel.context.attention import ContextAttention
from lib.parallel.context.softmax import Running, add_gradients
from lib.parallel.sharding.first_order import first_order

VALUES, GRADIENTS = 0, 1  # two trips at the same time: each has a tag of its own


class RingAttention(ContextAttention):
    """Communication, in pieces of keys and values (2, batch, kv_heads, n, d): forward P - 1 messages; backward P - 1,
    and P - 1 of gradients. All but the last travel while a block is computed."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """See `ContextAttention`."""
        return _Ring.apply(q, k, v, self, causal)


class _Ring(Function):
    @staticmethod
    def forward(ctx, q, k, v, ring, causal):
        group = ring.group
        ahead, behind = (group.rank + 1) % group.size, (group.rank - 1) % group.size
        kv, running = torch.stack([k, v]), Running(q)  # (2, batch, kv_heads, n, d)
        for hop in range(group.size):
            last = hop == group.size - 1
            if not last:
                coming = group.recv(behind, VALUES, async_op=True)
                group.send(kv, ahead, VALUES)
            running.add(*kv, ring.blocks((group.rank - hop) % group.size, causal))
            kv = kv if last else coming.wait()
        out, lse = running.result()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.ring, ctx.causal = ring, causal
        return out

    @staticmethod
    @first_order
    def backward(ctx, above):
        q, k, v, *whole = ctx.saved_tensors
        group = ctx.ring.group
        ahead, behind = (group.rank + 1) % group.size, (group.rank - 1) % group.size
        kv, dq = torch.stack([k, v]), torch.zeros_like(q)
        home = torch.zeros_like(kv)
        for hop in range(group.size):
            last = hop == group.size - 1
            if not last:
                coming = group.recv(behind, VALUES, async_op=True)
                group.send(kv, ahead, VALUES)
            if hop > 1:  # what those before found for the keys that are here
                sums = group.recv(behind, GRADIENTS, async_op=True)
            dkv = torch.zeros_like(kv) if hop else home
            blocks = ctx.ring.blocks((group.rank - hop) % group.size, ctx.causal)
            add_gradients((dq, *dkv), above, (q, *kv), whole, blocks)
            if hop > 1:
                dkv += sums.wait()
            if hop > 0:
                group.send(dkv, ahead, GRADIENTS)
            kv = kv if last else coming.wait()
        if group.size > 1:
            home += group.recv(behind, GRADIENTS)
        dk, dv = home
        return dq, dk, dv, None, None
