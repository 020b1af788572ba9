"""Hybrid sharding (HSDP): parameters are cut over the devices of a node, and each node holds them all once.

ZeRO 3 over all devices gathers every layer over the slowest link, three times a step. Cut over a node, the gathers stay
on the fast links, and only the gradients of a device's pieces, a G-th of all in nodes of G, cross the network, once:

    inside a node     all-gather, all-gather, reduce-scatter of every layer     fast links
    between nodes     all-reduce of this device's pieces                        the network

It is bought with memory: a G-th of the model state on each device, and not a P-th.
Zhao et al. 2023, arXiv 2304.11277, section 3.2.2 ("hybrid sharding").
"""

from collections.abc import Iterable

import torch
from torch import nn

from lib.devices import Group
from lib.parallel.data.average import check_same_parameters
from lib.parallel.sharding.named import named
from lib.parallel.zero.fully_sharded import FullySharded


class HybridSharded:
    """`FullySharded` over `shards`, the devices of a node, with copies over `replicas`, those with the same piece.

        mesh = Mesh(group, replicas=nodes, shards=per_node)
        hybrid = HybridSharded(model, mesh.shards, mesh.replicas, layers=model.blocks)
        optimizer = torch.optim.AdamW(model.parameters())
        loss.backward()                  # means over the shards
        hybrid.average_gradients()       # means over all
        optimizer.step()

    Raises ValueError, as `FullySharded` does, where devices begin with other parameters.
    """

    def __init__(self, module: nn.Module, shards: Group, replicas: Group, layers: Iterable[nn.Module] = ()):
        check_same_parameters(module, replicas)
        self.module, self.shards, self.replicas = module, shards, replicas
        self.sharded = FullySharded(module, shards, layers)

    def average_gradients(self) -> None:
        """After the backward. Communication: an all-reduce of this device's pieces over the replicas."""
        average_pieces(self.module, self.replicas)


@named
@torch.no_grad()
def average_pieces(module: nn.Module, replicas: Group) -> None:
    """The gradients of `module`'s pieces become means over the devices with the same ones. Partial -> Replicate."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([grad.detach().flatten() for grad in grads])  # (n/G,)  Partial over the replicas
    whole = replicas.all_reduce(flat) / replicas.size
    for grad, mean in zip(grads, whole.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view(grad.shape))
