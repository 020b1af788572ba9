"""Gradient clipping by the norm of the whole model's gradient, when each device sees only a part of it.

The norm is one number over all parameters, so it mixes devices. Of a replicated parameter every device has the whole
gradient: it counts once, and needs no communication. Of a sharded one each has a piece: the pieces' squares are summed
over the devices. Summing the replicated ones too would count them P times; summing none would clip every device by
another factor, and the replicas would come apart.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lib.devices import Group


def gradient_norm(
    parameters: Iterable[nn.Parameter], group: Group, sharded: Iterable[nn.Parameter] = (), norm_type: float = 2.0
) -> Tensor:
    """The norm of all gradients, the same on every device: () float64, Replicate.

    `sharded` are those of `parameters` of which each device of `group` holds a piece of its own; of the others all
    hold the same. With any sharded, one all-reduce of 8 bytes. Gradients must be averaged already.
    `norm_type` is the p of `(sum |g|^p)^(1/p)`, above 0; `math.inf` gives the largest `|g|`.
    """
    everything, pieces = list(parameters), set(sharded)
    _check(everything, pieces, group, norm_type)
    whole = _power([p for p in everything if p not in pieces], norm_type, everything[0].device)  # ()  Replicate
    if pieces:
        part = _power([p for p in everything if p in pieces], norm_type, everything[0].device)  # ()  Partial
        if norm_type == math.inf:
            whole = torch.maximum(whole, group.all_reduce(part, op="max"))
        else:
            whole = whole + group.all_reduce(part)
    return whole if norm_type == math.inf else whole ** (1 / norm_type)


def clip_gradients(
    parameters: Iterable[nn.Parameter],
    group: Group,
    max_norm: float,
    sharded: Iterable[nn.Parameter] = (),
    norm_type: float = 2.0,
) -> Tensor:
    """Scales all gradients in place so that their common norm is at most `max_norm`. Returns the norm before.

    The arguments are those of `gradient_norm`; on one device this is `torch.nn.utils.clip_grad_norm_`.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_gradients on rank {group.rank} of {group.size}: max_norm={max_norm} must be above 0")
    everything = list(parameters)
    norm = gradient_norm(everything, group, sharded, norm_type)
    clip_grads_with_norm_(everything, max_norm, norm)
    return norm


def _power(parameters: list[nn.Parameter], norm_type: float, device: torch.device) -> Tensor:
    """The sum of |g|^p over all elements, or the largest |g|: what can be combined over devices. () float64."""
    grads = [p.grad for p in parameters if p.grad is not None and p.numel()]  # an empty piece has no largest element
    norm = get_total_norm(grads, norm_type).to(device, torch.float64)
    return norm if norm_type == math.inf else norm**norm_type


def _check(everything: list[nn.Parameter], pieces: set[nn.Parameter], group: Group, norm_type: float) -> None:
    who = f"gradient_norm on rank {group.rank} of {group.size}"
    if not everything:
        raise ValueError(f"{who}: there are no parameters. Was a generator used up? Call model.parameters() anew")
    if not norm_type > 0:
        raise ValueError(f"{who}: norm_type={norm_type} must be above 0; 2 and math.inf are usual")
    strangers = [tuple(p.shape) for p in pieces - set(everything)]
    if strangers:
        raise ValueError(
            f"{who}: sharded parameters of the shapes {strangers} are not among `parameters`. "
            "Pass all parameters first, then with sharded=[...] those of them that are cut over the group"
        )
