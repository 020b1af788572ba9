"""Gradient clipping by the norm of the whole model's gradient, when each device sees only a part of it.

The norm is one number over all parameters, so it mixes devices. Of a replicated parameter every device has the whole
gradient: it counts once, and needs no communication. Of a sharded one each has a piece: the pieces' squares are summed
over the devices. Summing the replicated ones too would count them P times; summing none would clip every device by
another factor, and the replicas would come apart. Heads of keys and values that several devices hold are both: a piece,
with copies. How each parameter lies is known to the layer that made it, or to the piece itself.
"""

import math
from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lib.devices import Group
from lib.devices.engine.wording import short_ranks
from lib.parallel.sharding.dense import cut_parameters, layout_of
from lib.parallel.sharding.named import named


def gradient_norm(
    parameters: nn.Module | Iterable[nn.Parameter],
    group: Group,
    sharded: Iterable[nn.Parameter] = (),
    norm_type: float = 2.0,
) -> Tensor:
    """The norm of all gradients, the same on every device: () float64, Replicate.

    `parameters` is a module whose layers are split over `group`: then their layouts say which parameters are sharded,
    and which parts of them are copies. Or it is a list: then pieces (of `ShardedOptimizer` and `FullySharded`) and
    weights of linear layers and embeddings that were cut are known, and `sharded` are those others of which each device
    holds a part of its own. All else is replicated.
    With any sharded, one all-reduce of 8 bytes. Gradients must be averaged already. Raises ValueError when a module has
    no gradients, and where it is known that other devices than those of `group` hold parts too: those parameters want
    a norm of their own.
    `norm_type` is the p of `(sum |g|^p)^(1/p)`, above 0; `math.inf` gives the largest `|g|`.
    """
    everything, layouts = _with_layouts(parameters)
    sharded = set(sharded)
    pieces = sharded | {p for p in everything if hasattr(p, "origin")}  # see lib.parallel.zero.piece
    pieces |= layouts.keys()
    _check(everything, pieces, group, norm_type)
    _check_group(parameters, [p for p in everything if p not in sharded], group)
    whole = power_sum([p.grad for p in everything if p not in pieces], norm_type, everything[0].device)  # ()  Replicate
    if pieces:
        grads = [_counted(p, layouts.get(p), group) for p in everything if p in pieces]
        part = power_sum(grads, norm_type, everything[0].device)  # ()  Partial
        if norm_type == math.inf:
            whole = torch.maximum(whole, group.all_reduce(part, op="max"))
        else:
            whole = whole + group.all_reduce(part)
    return whole if norm_type == math.inf else whole ** (1 / norm_type)


def clip_gradients(
    parameters: nn.Module | Iterable[nn.Parameter],
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
    if not isinstance(parameters, nn.Module):
        parameters = list(parameters)  # it is gone through twice
    norm = gradient_norm(parameters, group, sharded, norm_type)
    clip_grads_with_norm_(_with_layouts(parameters)[0], max_norm, norm)
    return norm


def _with_layouts(parameters: nn.Module | Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], dict]:
    """All parameters, and how those are cut of which it is known."""
    if isinstance(parameters, nn.Module):
        named, cut = dict(parameters.named_parameters()), cut_parameters(parameters)
        # Pieces are cut further, each by its own rule.
        layouts = {p: layout_of(parameters, n) for n, p in named.items() if n in cut and not hasattr(p, "origin")}
        return list(named.values()), layouts
    everything = list(parameters)
    return everything, {p: p.placement for p in everything if hasattr(p, "placement") and not hasattr(p, "origin")}


def _counted(p: nn.Parameter, layout: object, group: Group) -> Tensor | None:
    """The gradient, without what another device counts."""
    if p.grad is None or not hasattr(layout, "owned"):
        return p.grad
    ranks = getattr(p, "cut_over", group.ranks)
    return layout.owned(p.grad, len(ranks), ranks.index(group.me))


@named
def power_sum(grads: list[Tensor | None], norm_type: float, device: torch.device) -> Tensor:
    """The sum of `|g|^p` over all elements, or the largest `|g|`: what can be combined over devices. () float64."""
    # Of half precision, each norm is taken in float32: float16 ends at 65504, and an infinite norm would clip all
    # gradients to zero. A piece may be empty, and nothing has no largest element.
    norms = [_in_float32(g.detach(), norm_type) for g in grads if g is not None and g.numel()]
    norm = get_total_norm(norms, norm_type).to(device, torch.float64)
    return norm if norm_type == math.inf else norm**norm_type


def _in_float32(x: Tensor, norm_type: float) -> Tensor:
    """What has the same norm as `x`: of half precision, its norm."""
    is_half = x.dtype in (torch.float16, torch.bfloat16)
    return torch.linalg.vector_norm(x, norm_type, dtype=torch.float32) if is_half else x


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


def _check_group(parameters: nn.Module | Iterable[nn.Parameter], unsaid: list[nn.Parameter], group: Group) -> None:
    """ValueError when parts are held by other devices than those of `group`, or gradients by something else than the
    module."""
    who = f"gradient_norm on rank {group.rank} of {group.size}"
    pieces = [p.origin for p in unsaid if hasattr(p, "origin")]
    elsewhere = [of.name for of in pieces if of.cut or {*of.ranks} != {*group.ranks}]
    if not isinstance(parameters, nn.Module):
        cut = [p for p in unsaid if not hasattr(p, "origin") and hasattr(p, "cut_over")]
        elsewhere += [f"a parameter {tuple(p.shape)}" for p in cut if {*p.cut_over} != {*group.ranks}]
    else:
        named = dict(parameters.named_parameters(remove_duplicate=False))
        if all(p.grad is None for p in named.values()):
            raise ValueError(
                f"{who}: none of the {len(named)} parameters has a gradient. Call backward() first; where a "
                "ShardedOptimizer has them, pass its `pieces`"
            )
        here = set(unsaid)
        for name, groups in cut_parameters(parameters).items():
            inside = all({*cut.ranks} <= {*group.ranks} for cut in groups)
            if named[name] in here and not (inside and prod(cut.size for cut in groups) == group.size):
                elsewhere.append(name)
    if elsewhere:
        names = list(dict.fromkeys(elsewhere))
        raise ValueError(
            f"{who}: {', '.join(names[:3])}{' ...' * (len(names) > 3)} "
            f"{'are' if len(names) > 1 else 'is'} not cut over the devices {short_ranks(group.ranks)} of this group "
            "alone, and would be counted too often or too seldom. Take the norm of those parameters as `sharded`, over "
            "all devices that hold a part of them, that of the others over their group, and add the squares of both"
        )
