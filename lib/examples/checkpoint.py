"""A training that can be interrupted: every device writes what is its own, and reads it again on the same devices.

    DIR/step-000200/rank-0.safetensors, rank-0.json, rank-1. ...     the tensors, and the numbers beside them
    DIR/step-000200/complete.json                                    written last: what has none is not used

Safetensors and JSON: reading them runs nothing. They fit the grid of devices that wrote them, and no other.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.devices import Group
from lib.examples.trainer import Trainer
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.zero.master import MasterWeights

KEEP = 2  # the latest checkpoints; older ones are removed
MAY_CHANGE = ("recompute",)  # what changes no number, so that a resumed run may have it otherwise


def save(folder: Path, done: int, trainer: Trainer, config: GPTConfig, group: Group) -> None:
    """All devices call it after `done` steps. An interruption leaves the last complete checkpoint as it was."""
    place = folder / f"step-{done:06}"
    place.mkdir(parents=True, exist_ok=True)
    save_file({name: x.contiguous().clone() for name, x in _tensors(trainer).items()}, _file(place, group.rank))
    numbers = {"param_groups": trainer.adam.state_dict()["param_groups"]}
    _file(place, group.rank).with_suffix(".json").write_text(json.dumps(numbers), "utf-8")
    group.barrier()
    if group.rank == 0:
        (place / "complete.json").write_text(json.dumps(_facts(trainer, config, group.size)), "utf-8")
        for old in sorted(folder.glob("step-*"))[:-KEEP]:
            shutil.rmtree(old)
    group.barrier()


def latest(folder: Path) -> tuple[int, Path] | None:
    """The number of steps of the last complete checkpoint in `folder`, and its place; None when there is none."""
    complete = sorted(file.parent for file in folder.glob("step-*/complete.json"))
    return (int(complete[-1].name.removeprefix("step-")), complete[-1]) if complete else None


def load(place: Path, done: int, trainer: Trainer, config: GPTConfig, group: Group) -> None:
    """The training goes on as if it had never stopped. Raises ValueError when it was another one, and names how."""
    there, here = _read(place / "complete.json"), json.loads(json.dumps(_facts(trainer, config, group.size)))
    for name in here:
        if there.get(name) != here[name]:
            raise ValueError(
                f"{place} was written with {name}={there.get(name)!r}, and this is {name}={here[name]!r}: resume with "
                "the options of then, on as many devices"
            )
    try:
        tensors = load_file(_file(place, group.rank))
        groups = _read(_file(place, group.rank).with_suffix(".json"))["param_groups"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{_file(place, group.rank)} cannot be read: {error}") from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        if name.startswith("adam."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = x
    trainer.adam.load_state_dict({"state": state, "param_groups": groups})
    with torch.no_grad():
        for name, x in _tensors(trainer).items():
            if not name.startswith("adam."):
                x.copy_(tensors[name])
    trainer.go_on_after(done)


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    """All that this device steps: parameters, masters, and AdamW's moments."""
    found = {f"parameter.{name}": p.detach() for name, p in trainer.model.named_parameters()}
    inner = getattr(trainer.optimizer, "optimizer", None)
    for optimizer in (trainer.optimizer, inner):
        if isinstance(optimizer, MasterWeights):
            found |= {f"master.{i}": master.detach() for i, master in enumerate(optimizer.masters)}
    for i, of_one in trainer.adam.state_dict()["state"].items():
        found |= {f"adam.{i}.{key}": x for key, x in of_one.items()}
    return found


def _facts(trainer: Trainer, config: GPTConfig, size: int) -> dict[str, Any]:
    recipe = {name: value for name, value in asdict(trainer.recipe).items() if name not in MAY_CHANGE}
    return {**asdict(config), **recipe, "dtype": str(trainer.recipe.dtype), "devices": size}


def _file(place: Path, rank: int) -> Path:
    return place / f"rank-{rank}.safetensors"


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
