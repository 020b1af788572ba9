"""A small training that is interrupted and goes on, and may forget something: what the loss tells of it.

A data-parallel network with dropout, whose batches run through a row of samples. All that it is at a moment:
parameters, Adam's moments, the random stream of each device, and the place in the data.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.devices import Group
from lib.parallel.data.average import average_gradients, shard_batch
from lib.parallel.recovery.blocks import Held
from lib.parallel.recovery.checkpoint import load, manifest_of, newest
from lib.parallel.recovery.dense import held_whole
from lib.parallel.recovery.saving import save
from lib.parallel.recovery.state import all_held, parameters_held

BATCH, KINDS, WIDTH, HIDDEN = 16, 10, 64, 256
FORGETS = ("moments", "data", "stream", "nothing")


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Samples number 16 step to 16 step + 15: each kind is a direction, with much noise."""
    # In float64 from the start: numbers drawn in float32 differ in their last bit from processor to processor.
    random = torch.Generator().manual_seed(12)
    kinds = torch.randn(KINDS, WIDTH, generator=random, dtype=torch.float64)
    random.manual_seed(100 + step)
    label = torch.randint(KINDS, (BATCH,), generator=random)
    return kinds[label] + 3 * torch.randn(BATCH, WIDTH, generator=random, dtype=torch.float64), label


def train(group: Group, stop: int, folder: Path | None = None, resume: bool = False, forget: str = "nothing") -> list:
    """Steps up to number `stop`, saved in `folder` at the end; with `resume`, from what stands there, but for what it
    is told to `forget`. Returns the losses of the whole batches."""
    if forget not in FORGETS:
        raise ValueError(f"forget={forget!r} is not one of {', '.join(FORGETS)}")
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Dropout(0.3), nn.Linear(HIDDEN, KINDS)).double()
    adam = torch.optim.AdamW(model.parameters(), lr=0.005)
    torch.manual_seed(1000 + group.rank)  # every replica drops something else
    done = first = 0
    if resume:
        place, _ = newest(folder, group)
        done = first = manifest_of(place)["step"]
        _restore(group, place, model, adam, forget)
        first = 0 if forget == "data" else done
    losses = []
    for step in range(done, stop):
        x, label = (shard_batch(some, group) for some in batch(step - done + first))  # Shard(0)
        adam.zero_grad()
        loss = F.cross_entropy(model(x), label)
        loss.backward()
        average_gradients(model, group)
        adam.step()
        losses.append(group.all_reduce(loss.detach() / group.size).item())
    if folder and not resume:
        save(folder, stop, [*_held(group, model, adam), _stream(group)], {}, group)
    return losses


def _restore(group: Group, place: Path, model: nn.Module, adam: torch.optim.AdamW, forget: str) -> None:
    there: dict[str, Any] = manifest_of(place)["tensors"]
    held = _held(group, model, adam, None if forget == "moments" else there)
    stream = _stream(group)
    load(place, held if forget == "stream" else [*held, stream])
    torch.set_rng_state(stream.x)


def _held(group: Group, model: nn.Module, adam: torch.optim.AdamW, saved: dict[str, Any] | None = None) -> list[Held]:
    one = group.split(group.size)  # the layers are whole on every device
    return all_held(parameters_held(model, one), adam, saved)


def _stream(group: Group) -> Held:
    """Where this device's random numbers stand: under its own name, since it is like no other's."""
    return held_whole({f"stream.{group.rank}": torch.get_rng_state()})[0]
