"""All that a training needs to go on: parameters, buffers, master weights, and what the optimizer keeps of each.

Names are those of the model on one device, whatever the devices: `parameter.blocks.0.mlp.up.weight`, and
`exp_avg.blocks.0.mlp.up.weight` for Adam's momentum of it. A moment is laid out as the parameter that it belongs to.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lib.devices import Group
from lib.parallel.recovery.blocks import Held, rows_of
from lib.parallel.sharding.dense import layout_of
from lib.parallel.sharding.placement import Placement
from lib.parallel.zero.master import MasterWeights
from lib.parallel.zero.optimizer import ShardedOptimizer
from lib.parallel.zero.piece import Piece, whole_shape


def parameters_held(
    model: nn.Module, group: Group, over: Callable[[Placement], Group] | None = None
) -> dict[str, Held]:
    """By name, what this device holds of the parameters and buffers of `model`, whose layers are split over `group`.

    `over` says so of a layout, where not all are cut over one group (as experts are not): each group as one object. A
    parameter may be a `Piece` of FullySharded. Communication: one small all-gather per group, of shapes.
    """
    over = over or (lambda layout: group)
    parameters = dict(model.named_parameters())
    lasting = model.state_dict().keys()  # some buffers are no part of the state
    named = parameters | {name: buffer for name, buffer in model.named_buffers() if name in lasting}
    layouts = {name: layout_of(model, name) for name in named}
    shapes: dict[str, list[torch.Size]] = {}
    for members in {over(layout): None for layout in layouts.values()}:
        mine = [name for name in named if over(layouts[name]) is members]
        table = members.table_of([n for name in mine for n in whole_shape(named[name])])
        at = 0
        for name in mine:
            dims = len(whole_shape(named[name]))
            shapes[name] = [torch.Size(row[at : at + dims]) for row in table]
            at += dims
    held = {}
    for name, p in named.items():
        layout, members = layouts[name], over(layouts[name])
        # The layout says what the whole is made of these pieces; on meta, that costs nothing.
        whole = layout.whole([torch.empty(shape, device="meta") for shape in shapes[name]]).shape
        rows = rows_of(layout, whole, whole_shape(p), members.size, members.rank)
        part = p.origin.where if isinstance(p, Piece) else None
        kind = "parameter" if name in parameters else "buffer"
        held[name] = Held(f"{kind}.{name}", p, tuple(whole), rows, part)
    return held


def all_held(
    held: dict[str, Held], optimizer: Optimizer | Any, saved: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Held]:
    """The parameters, as `parameters_held` gives them, their masters, and what `optimizer` keeps of each; there may be
    a list of optimizers, each for some of them.

    A new optimizer keeps nothing yet: of a checkpoint that is to be loaded, `saved` are the tensors that its manifest
    lists, and the optimizer is given room for those that are its own. Raises ValueError where an optimizer keeps
    something in another shape than its parameter's, as Adafactor does.
    """
    optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
    stepped = [(_innermost(each), *what) for each in optimizers for what in _stepped(held, each)]
    found, numbers = list(held.values()), _numbers(saved or {})
    for inner, name, p, is_master in stepped:
        one = held[name]
        part = p.origin.where if isinstance(p, Piece) else one.part
        if is_master:
            found.append(replace(one, name=f"master.{name}", x=p, part=part))
        state = inner.state[p]
        for label in saved or ():
            key, _, of = label.partition(".")
            if of == name and key not in ("parameter", "master", *state):
                like = torch.zeros(()) if key in numbers else torch.zeros_like(p.detach())
                state[key] = like.to(getattr(torch, saved[label]["dtype"]))
        for key, x in state.items():
            if isinstance(x, Tensor) and x.ndim == 0:  # a number, such as Adam's count of steps
                found.append(Held(f"{key}.{name}", x, (), ()))
            elif isinstance(x, Tensor):
                if x.shape != p.shape:
                    raise ValueError(
                        f"all_held: {type(inner).__name__} keeps {key} {tuple(x.shape)} of {name} {tuple(p.shape)}; "
                        "only what is laid out as its parameter can be cut as that is. Take an optimizer like AdamW"
                    )
                found.append(replace(one, name=f"{key}.{name}", x=x, part=part))
    return found


def _numbers(saved: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """What the saved optimizer keeps as one number of a parameter, whatever its shape. Of a parameter that is a number
    itself, its moments look the same; so the others say it."""
    found = {"step"}
    for label, tensor in saved.items():
        key, _, of = label.partition(".")
        if not tensor["shape"] and saved.get(f"parameter.{of}", tensor)["shape"]:
            found.add(key)
    return found


def _stepped(held: dict[str, Held], optimizer: Optimizer | Any) -> list[tuple[str, Tensor, bool]]:
    """(name, what the innermost optimizer steps for it, whether that is a master)."""
    name_of: dict[Tensor, str] = {one.x: name for name, one in held.items()}
    masters: dict[Tensor, Tensor] = {}
    while isinstance(optimizer, ShardedOptimizer | MasterWeights):
        if isinstance(optimizer, ShardedOptimizer):
            name_of = {piece: piece.origin.name for piece in optimizer.pieces}
        else:
            masters = dict(zip(optimizer.masters, optimizer.parameters, strict=True))
        optimizer = optimizer.optimizer
    stepped = [p for some in optimizer.param_groups for p in some["params"]]
    return [(name_of[masters.get(p, p)], p, p in masters) for p in stepped]


def _innermost(optimizer: Optimizer | Any) -> Optimizer:
    while isinstance(optimizer, ShardedOptimizer | MasterWeights):
        optimizer = optimizer.optimizer
    return optimizer
