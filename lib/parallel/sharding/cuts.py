"""A weight that is cut says so itself, for whoever sees it without its layer: a list of parameters, an optimizer.

Most optimizers treat each element by itself, and need not know. Others take a norm or a product of the whole weight:
of a device's piece they would make another step than one device, and no shape would tell.
"""

from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from lib.devices.engine.wording import short_ranks
from lib.parallel.sharding.dense import cut_over

# Those of PyTorch, and others as they are mostly called.
MIX_ELEMENTS = frozenset("Adafactor Lamb LAMB Lars LARS LBFGS Muon Shampoo SOAP".split())


def declare_cuts(layer: nn.Module) -> None:
    """When `layer` is made, and before each forward: the parameters that it has cut get their `placement`, and
    `cut_over`, the ranks of the devices with pieces.

    Raises ValueError where one is no parameter any more, but computed from others: whatever computes it (spectral_norm,
    weight_norm, prune) would take this device's piece for the whole.
    """
    groups = {name: over for name in layer.layout if (over := cut_over(layer, name))}
    computed = [name for name in groups if name not in layer._parameters]
    if computed:
        group = groups[computed[0]][0]
        raise ValueError(
            f"{type(layer).__name__} on rank {group.rank} of {group.size}: its {' and '.join(computed)} is computed "
            "from other parameters, by a parametrization, weight_norm or prune, of this device's piece alone. The "
            "whole layer would have another one. Take it off, or put what is computed into the dense layer"
        )
    for name, over in groups.items():
        parameter = layer._parameters[name]
        if parameter is not None:
            parameter.placement = layer.layout[name]
            parameter.cut_over = tuple(dict.fromkeys(rank for group in over for rank in group.ranks))


def refuse_mixing(optimizer: Optimizer, *_: Any) -> None:
    """Before a step of any optimizer. ValueError where one that mixes the elements of a weight has pieces."""
    if MIX_ELEMENTS.isdisjoint(kind.__name__ for kind in type(optimizer).__mro__):
        return
    for p in (p for some in optimizer.param_groups for p in some["params"] if hasattr(p, "cut_over")):
        raise ValueError(
            f"{type(optimizer).__name__} mixes the elements of a weight, and this device has a piece {tuple(p.shape)} "
            f"of one, {p.placement} over the ranks {short_ranks(p.cut_over)}. Step it with an optimizer that treats "
            "each element by itself, such as AdamW; what is not cut may stay"
        )


register_optimizer_step_pre_hook(refuse_mixing)
