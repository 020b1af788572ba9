"""The part of `private.py` for DTensor: what it keeps once for a process."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from lib.guest.private import take

DTENSOR = "torch.distributed.tensor._redistribute"  # the last module of DTensor to be imported of those named below


@dataclass(frozen=True)
class OfDTensor:
    """What DTensor keeps for a process: handlers of operations, plans for redistributions, and what makes the plans."""

    handlers: dict
    planners: dict
    plan: Callable

    def afresh(self) -> "OfDTensor":
        """The same handlers, and no plans."""
        return OfDTensor(dict(self.handlers), {}, cache(take(DTENSOR, "_gen_transform_infos_non_cached")))


def of_dtensor() -> OfDTensor:
    """What it keeps at the moment."""
    dispatcher = take("torch.distributed.tensor", "DTensor")._op_dispatcher
    return OfDTensor(
        dispatcher._custom_op_handlers, take(DTENSOR, "_planner_cache"), take(DTENSOR, "_gen_transform_infos")
    )


def set_dtensor(kept: OfDTensor) -> None:
    """From now on it keeps this."""
    take("torch.distributed.tensor", "DTensor")._op_dispatcher._custom_op_handlers = kept.handlers
    module = importlib.import_module(DTENSOR)
    module._planner_cache, module._gen_transform_infos = kept.planners, kept.plan
