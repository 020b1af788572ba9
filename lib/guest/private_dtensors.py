"""The part of `private.py` for DTensor: what it keeps once for a process."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from lib.guest.private import take

DTENSOR = "torch.distributed.tensor._redistribute"  # the last module of DTensor to be imported of those named below


@dataclass
class OfDTensor:
    """What DTensor keeps for a process: handlers of operations, plans for redistributions, and what makes the plans."""

    handlers: dict
    planners: dict
    plan: Callable

    def afresh(self) -> "OfDTensor":
        """The same handlers, and no plans."""
        return OfDTensor(dict(self.handlers), {}, cache(take(DTENSOR, "_gen_transform_infos_non_cached")))


class Keeper:
    """Where DTensor keeps it. Made when DTensor is there; then asked at every turn."""

    def __init__(self) -> None:
        self._dispatcher = take("torch.distributed.tensor", "DTensor")._op_dispatcher
        take(DTENSOR, "_planner_cache"), take(DTENSOR, "_gen_transform_infos")
        self._module = vars(importlib.import_module(DTENSOR))

    def read(self) -> OfDTensor:
        """What it keeps at the moment."""
        module = self._module
        return OfDTensor(self._dispatcher._custom_op_handlers, module["_planner_cache"], module["_gen_transform_infos"])

    def write(self, kept: OfDTensor) -> None:
        """From now on it keeps this."""
        self._dispatcher._custom_op_handlers = kept.handlers
        self._module.update(_planner_cache=kept.planners, _gen_transform_infos=kept.plan)


@contextmanager
def shardings_of(**rules: Callable) -> Iterator[None]:
    """While entered, DTensor shards operations of `torch.ops.aten` by `rules`, as `register_sharding` takes them."""
    propagator = take("torch.distributed.tensor", "DTensor")._op_dispatcher.sharding_propagator
    kept = propagator.op_strategy_funcs, propagator.op_to_schema_info
    before = [dict(content) for content in kept]
    for name, rule in rules.items():
        take("torch.distributed.tensor.experimental", "register_sharding")(getattr(torch.ops.aten, name).default)(rule)
    try:
        yield
    finally:
        for content, old in zip(kept, before, strict=True):
            content.clear()
            content.update(old)


@contextmanager
def within_context_parallel(**handlers: Callable) -> Iterator[None]:
    """While entered, `context_parallel` also has `handlers` of operations of `torch.ops.aten`, each called with the
    operation, its arguments and its keywords."""
    known = take("torch.distributed.tensor.experimental._context_parallel._attention", "custom_ops")
    replaced = take("torch.distributed.tensor.experimental._context_parallel._attention", "_replaced_functions")
    options = vars(take("torch.distributed.tensor.experimental._context_parallel._attention", "_cp_options"))
    before = [(content, dict(content)) for content in (known, replaced, options)]
    known.update((getattr(torch.ops.aten, name).default, handler) for name, handler in handlers.items())
    try:
        yield
    finally:
        for content, old in before:
            content.clear()
            content.update(old)


def ring_attention(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
    """PyTorch's ring: its group, the dimension of tokens, the kernel, and what the kernel takes."""
    return take("torch.distributed.tensor.experimental._context_parallel._attention", "_templated_ring_attention")(
        *args, **kwargs
    )


def ring_attention_backward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
    """Its backward; the fourth and fifth argument are the gradient that comes, and what the kernel calls it."""
    return take(
        "torch.distributed.tensor.experimental._context_parallel._attention", "_templated_ring_attention_backward"
    )(*args, **kwargs)
