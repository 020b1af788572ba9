"""Hybrid sharding (HSDP): parameters are cut over the devices of a node, and each node holds them all once.

ZeRO 3 over all devices gathers every layer over the slowest link, three times a step. Cut over a node, the gathers stay
on the fast links, and only the gradients of a device's pieces, a G-th of all in nodes of G, cross the network, once:

    inside a node     all-gather, all-gather, reduce-scatter of every layer     fast links
    between nodes     all-reduce of this device's pieces                        the network

It is bought with memory: a G-th of the model state on each device, and not a P-th.
Zhao et al. 2023, arXiv 2304.11277, section 3.2.2 ("hybrid sharding").
"""

from collections.abc import Iterable

from torch import nn

from lib.devices import Group
from lib.parallel.data.average import average_gradients, check_same_parameters
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

    def average_gradients(self, allow_unused: bool = False) -> None:
        """After the backward. `allow_unused` is that of the function of this name: needed where a replica leaves out
        layers that another one calls. Communication: an all-reduce of this device's pieces over the replicas."""
        average_pieces(self.module, self.replicas, allow_unused)


@named
def average_pieces(module: nn.Module, replicas: Group, allow_unused: bool = False) -> None:
    """The gradients of `module`'s pieces become means over the devices with the same ones. Partial -> Replicate."""
    average_gradients(module, replicas, allow_unused=allow_unused)
