"""Does what one stage makes fit into the next? A rehearsal on `meta` says so before anything runs.

A stage is any function of one tensor, so nobody can read from it which shape it takes. But it can be tried: with a
tensor that has a shape and no numbers, every operation of a stage costs nothing and still checks its shapes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lib.devices import Group
from lib.parallel.pipeline.steps import Schedule
from lib.parallel.pipeline.worker import Stage

MOST = 8  # dims of a tensor between two stages


def check_shapes(
    group: Group, schedule: Schedule, stages: Mapping[int, Stage], inputs: Sequence[Tensor]
) -> dict[int, tuple[int, ...]]:
    """Hands the shape of micro-batch 0 through all stages. Returns what each stage of this device makes: its shape.

    Arguments are those of `run_pipeline`; all devices call it. Raises ValueError that names rank, stage and shapes
    where a stage cannot take what the one before makes, or makes something else than one tensor.
    Communication: a broadcast of a few integers for each stage. Nothing is computed and no weight is changed. A stage
    is called once, without gradients; collectives inside of it meet without numbers, and are counted.
    """
    made: dict[int, tuple[int, ...]] = {}
    x = inputs[0].to("meta")
    for stage, device in schedule.device_of.items():
        if device == group.rank:
            x = _rehearse(group, stage, stages[stage], x)
            made[stage] = tuple(x.shape)
        shape, kind = _told(group, x if device == group.rank else None, device)
        x = torch.empty(shape, dtype=kind, device="meta")
    return made


def _rehearse(group: Group, stage: int, run: Stage, x: Tensor) -> Tensor:
    where = f"check_shapes on rank {group.rank} of {group.size}: stage {stage}"
    given = f"micro-batch 0 in shape {tuple(x.shape)}"
    random = torch.get_rng_state()  # a dropout draws its seed; the step itself shall find the same
    try:
        with torch.no_grad(), _WithoutNumbers():
            y = run(x)
    except (RuntimeError, ValueError, IndexError) as error:
        source = f"Let stage {stage - 1} return" if stage else "Hand in inputs of"
        raise ValueError(
            f"{where} cannot take {given}: {str(error).splitlines()[0]}. {source} the shape that stage {stage} takes"
        ) from error
    finally:
        torch.set_rng_state(random)
    if not isinstance(y, Tensor) or y.ndim > MOST:
        found = f"a tensor of {y.ndim} dims" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{where} makes {found} of {given}; a stage must return one tensor of at most {MOST} dims")
    return y


_KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool)


def _told(group: Group, x: Tensor | None, source: int) -> tuple[list[int], torch.dtype]:
    """Shape and type of `x` of the device `source`, on all: a message of one form, whatever the shape."""
    told = None
    if x is not None:
        told = torch.tensor([_KINDS.index(x.dtype), x.ndim, *x.shape, *[0] * (MOST - x.ndim)], device="cpu")
    kind, dims, *shape = group.broadcast(told, source).tolist()
    return shape[:dims], _KINDS[kind]


class _WithoutNumbers(TorchDispatchMode):
    """What meets a tensor without numbers loses its own: weights have only their shapes here."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        def bare(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to("meta")
            return torch.device("meta") if isinstance(value, torch.device) else value

        kwargs = kwargs or {}
        if any(isinstance(value, Tensor) and value.is_meta for value in tree_leaves((args, kwargs))):
            args, kwargs = tree_map(bare, (args, kwargs))
        return func(*args, **kwargs)
