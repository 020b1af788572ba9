"""Between a checkpoint and whole tensors, as one device has them: for other programs, and for other formats."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lib.parallel.recovery.blocks import Held
from lib.parallel.recovery.checkpoint import load, manifest_of


def held_whole(tensors: Mapping[str, Tensor]) -> list[Held]:
    """What a device holds that has all of each tensor. Saved from one device, it can be loaded on any number."""
    return [Held(name, x, tuple(x.shape), tuple(tuple(range(n)) for n in x.shape)) for name, x in tensors.items()]


def whole_tensors(place: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, whole, by name."""
    described = manifest_of(place)["tensors"]
    tensors = {name: torch.empty(one["shape"], dtype=getattr(torch, one["dtype"])) for name, one in described.items()}
    load(place, held_whole(tensors))
    return tensors
