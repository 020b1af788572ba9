"""A training that can be interrupted, and goes on on other devices if need be.

What is saved names no device: the blocks of parameters and moments (`lib.parallel.recovery`), and beside them what must
be the same when the training goes on, such as the model and the batches.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lib.devices import Group
from lib.examples.trainer import Trainer
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.recovery import checkpoint, saving
from lib.parallel.recovery.state import all_held, parameters_held

# How the devices are arranged, and in which order they add up: a resumed run may have it otherwise.
MAY_CHANGE = ("data_parallel", "pipeline_parallel", "zero", "sequence_parallel", "recompute", "accumulate")


def save(folder: Path, done: int, trainer: Trainer, config: GPTConfig, group: Group, text: str = "") -> None:
    """All devices call it after `done` steps; `text` is the fingerprint of what is trained on. An interruption leaves
    the last complete checkpoint as it was."""
    held = all_held(parameters_held(trainer.model, trainer.mesh.tp), trainer.optimizer)
    settings = [{k: v for k, v in some.items() if k != "params"} for some in trainer.adam.param_groups]
    saving.save(folder, done, held, {"training": _facts(trainer, config, text), "optimizer": settings}, group)


def latest(folder: Path) -> int | None:
    """The number of steps of the last complete checkpoint in `folder`; None when there is none."""
    places = checkpoint.complete(folder)
    return checkpoint.manifest_of(places[0])["step"] if places else None


def load(folder: Path, trainer: Trainer, config: GPTConfig, group: Group, text: str = "") -> tuple[int, list[str]]:
    """The training goes on as if it had never stopped. Returns the steps that are done, and what is wrong with newer
    checkpoints. Raises ValueError when no checkpoint is whole, or when it was another training, and names how."""
    place, wrong = checkpoint.newest(folder, group)
    if place is None:
        raise ValueError(f"no checkpoint in {folder} is whole: {'; '.join(wrong)}")
    manifest = checkpoint.manifest_of(place)
    there, here = manifest["facts"]["training"], json.loads(json.dumps(_facts(trainer, config, text)))
    for name in here:
        if there.get(name) != here[name]:
            raise ValueError(
                f"{place} was written with {name}={there.get(name)!r}, and this is {name}={here[name]!r}: resume with "
                "the options of then"
            )
    held = all_held(parameters_held(trainer.model, trainer.mesh.tp), trainer.optimizer, manifest["tensors"])
    checkpoint.load(place, held)
    for some, settings in zip(trainer.adam.param_groups, manifest["facts"]["optimizer"], strict=True):
        some.update({k: tuple(v) if isinstance(some.get(k), tuple) else v for k, v in settings.items()})
    trainer.go_on_after(manifest["step"])
    return manifest["step"], wrong


def _facts(trainer: Trainer, config: GPTConfig, text: str) -> dict[str, Any]:
    recipe = {name: value for name, value in asdict(trainer.recipe).items() if name not in MAY_CHANGE}
    return {**asdict(config), **recipe, "dtype": str(trainer.recipe.dtype), "text": text}
