"""The weights of a GPT-2 as people have them on disk: one file or many, safetensors or .bin, a folder or its index.

Nothing in them is run: a .bin is read by PyTorch's `weights_only` reader, which knows tensors and containers alone.
"""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PICKLED = (".bin", ".pt", ".pth")
INDEX = ".index.json"
WHOLE = ("model.safetensors", "pytorch_model.bin", "model.safetensors" + INDEX, "pytorch_model.bin" + INDEX)
WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)  # DDP, compile, FSDP, recompute
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})(\.\w+)")


def read_files(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What config.json says, and all weights by name, out of a file, a folder, an index, or one of many shards.

    Raises FileNotFoundError that names what is missing, and ValueError that names a file which holds something else.
    """
    path = _file(Path(path))
    settings = path.with_name("config.json")
    if not settings.is_file():
        raise FileNotFoundError(
            f"{settings} is not there; it needs to stand beside {path.name}, with the sizes of the model: download it "
            "from where the weights are"
        )
    weights = _read_shards(path) if path.name.endswith(INDEX) else _read(path)
    return read_json(settings), without_wrappers(weights)


def without_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without what DistributedDataParallel, torch.compile, ... add to names. ValueError if two get one."""
    plain: dict[str, Tensor] = {}
    for name, x in weights.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in plain:
            raise ValueError(f"two weights are called {short}, once its wrappers are taken off: {name} is one of them")
        plain[short] = x
    return plain


def _file(path: Path) -> Path:
    """The file with the weights, or their index, that `path` means."""
    if path.is_dir():
        found = [path / name for name in WHOLE if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path} is a folder without weights: none of {', '.join(WHOLE)} is there")
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    shard = _SHARD.fullmatch(path.name)
    if shard is None or shard[2] == "00001":
        return path
    index = path.with_name(f"{shard[1]}{shard[3]}{INDEX}")
    if not index.is_file():
        raise FileNotFoundError(
            f"{path.name} holds one of {int(shard[2])} parts of the weights, and {index.name}, which says where the "
            "others are, is not beside it: download all of them into one folder"
        )
    return index


def _read_shards(index: Path) -> dict[str, Tensor]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{index} is no index of weights: it has no weight_map")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        file = index.with_name(Path(name).name)  # beside the index: it may not lead out of the folder
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there, but {index.name} says that it holds a part of the weights")
        weights |= _read(file)
    missing = sorted(where.keys() - weights.keys())
    if missing:
        raise ValueError(f"{index.name} says that there is {missing[0]}, but {where[missing[0]]} does not hold it")
    return weights


def _read(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as opened:
        if opened.read(40).startswith(b"version https://git-lfs"):
            raise ValueError(f"{file} is only a pointer to the weights, left by git: fetch them with `git lfs pull`")
    try:
        if file.suffix in PICKLED:
            return _state(torch.load(file, map_location="cpu", weights_only=True), file)
        return load_file(file)
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError) as error:
        kind = "safe .bin file" if file.suffix in PICKLED else ".safetensors file"
        first = str(error).split("\n")[0]
        raise ValueError(f"{file} is no {kind}, or was cut off: {first}") from error


def _state(loaded: Any, file: Path) -> dict[str, Tensor]:
    """The state dict, which some keep under a name beside the optimizer's."""
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(x, Tensor) for x in loaded.values()):
        raise ValueError(f"{file} holds no state dict: save model.state_dict()")
    return dict(loaded)


def write_file(weights: dict[str, Tensor], path: Path) -> None:
    """Writes a .safetensors file. Raises OSError that names it when there is no room for it, or no such folder."""
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """What a file of settings says, by name. ValueError that names a file with something else."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no settings, but a {type(found).__name__}")
    return found
