"""A checkpoint that any number of devices can read: files of blocks, and a manifest that says what they are.

    DIR/step-000200/rank-0.safetensors ...     the blocks that device 0 wrote
    DIR/step-000200/manifest.json              written last: what has none is no checkpoint

    {"format": 1, "step": 200, "facts": {...},
     "files": {"rank-0.safetensors": {"bytes": 1048, "sha256": "..."}},
     "tensors": {"parameter.norm.weight": {"shape": [64], "dtype": "float32",
                                           "blocks": [{"file": ..., "key": ..., "start": [0], "shape": [64]}]}}}

Safetensors and JSON: reading them runs nothing, and needs nothing of this book. How they are written: `saving.py`.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lib.devices import Group
from lib.parallel.recovery.agree import of_everyone
from lib.parallel.recovery.blocks import Block, Held

FORMAT = 1
MANIFEST = "manifest.json"


def complete(folder: Path) -> list[Path]:
    """The checkpoints that have a manifest, the newest first."""
    found = (file.parent for file in folder.glob(f"step-*/{MANIFEST}"))
    return sorted(found, key=lambda place: (len(place.name), place.name), reverse=True)  # 1000000 is after 999999


def newest(folder: Path, group: Group) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with the newer ones. Each device reads its share of the
    files. All devices call it, and get the same."""
    wrong = []
    for place in complete(folder):
        faults = [fault for some in of_everyone(group, damages(place, group.rank, group.size)) for fault in some]
        if not faults:
            return place, wrong
        wrong.append(f"{place.name}: {faults[0]}")
    return None, wrong


def damages(place: Path, rank: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with the files of a checkpoint, in words; of `parts` devices, each looks at its share of them."""
    try:
        files = manifest_of(place)["files"]
    except ValueError as error:
        return [str(error)]
    found = []
    for name in sorted(files)[rank::parts]:
        try:
            data = (place / name).read_bytes()
        except OSError as error:
            found.append(f"{name} cannot be read: {error.strerror}")
            continue
        if len(data) != files[name]["bytes"]:
            found.append(f"{name} has {len(data):,} bytes in place of {files[name]['bytes']:,}: it was cut short")
        elif hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
            found.append(f"{name} is not what was written: its checksum differs")
    return found


def manifest_of(place: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. ValueError when there is none, or one of another format."""
    try:
        manifest = json.loads((place / MANIFEST).read_bytes())
        written = manifest["format"]
    except OSError as error:
        raise ValueError(f"{place / MANIFEST} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{place / MANIFEST} is damaged: {error}") from error
    if written != FORMAT:
        raise ValueError(f"{place / MANIFEST} is of format {written}, and this reads format {FORMAT}")
    return manifest


def load(place: Path, held: Sequence[Held]) -> int:
    """Fills what this device holds from the blocks of a checkpoint, whoever wrote them; returns the bytes it read.

    Raises ValueError, and changes nothing, when a tensor is missing, of another shape, or not wholly there.
    """
    manifest, found, read = manifest_of(place), [], 0
    missing = [one.name for one in held if one.name not in manifest["tensors"]]
    if missing:
        raise ValueError(
            f"{place} has no {', '.join(missing[:4])}{' ...' * (len(missing) > 4)}: it is of another model"
        )
    opened = Opened(place)
    for one in held:
        tensor = manifest["tensors"][one.name]
        if tuple(tensor["shape"]) != one.whole or tensor["dtype"] != dtype_name(one.x.dtype):
            raise ValueError(
                f"{place}: {one.name} is {tensor['dtype']} {tuple(tensor['shape'])} there, and "
                f"{dtype_name(one.x.dtype)} {one.whole} here"
            )
        rows = one.x.new_zeros(tuple(map(len, one.rows)), device="cpu")
        for block, where in one.blocks():
            there = torch.zeros(block.shape, dtype=torch.bool)
            for saved in tensor["blocks"]:
                source = Block(tuple(saved["start"]), tuple(saved["shape"]))
                common = block.common(source)
                if common is None or there[common.inside(block)].all():
                    continue
                values = opened.read(saved["file"], saved["key"], common.inside(source))
                rows[where][common.inside(block)] = values
                there[common.inside(block)] = True
                read += values.nbytes
            if not there.all():
                raise ValueError(f"{place}: of {one.name} {one.whole}, a part of {block} is in none of its files")
        found.append(rows)
    for one, rows in zip(held, found, strict=True):
        one.fill(rows)
    return read


class Opened:
    """The files of a checkpoint, each opened once; of each, only what is asked for is read."""

    def __init__(self, place: Path):
        self._place, self._files = place, {}

    def read(self, file: str, key: str, where: tuple[slice, ...]) -> torch.Tensor:
        """The part `where` of the tensor `key`. ValueError when it cannot be read."""
        try:
            if file not in self._files:
                self._files[file] = safe_open(self._place / file, "pt")
            # A single number has no slices.
            return self._files[file].get_slice(key)[where] if where else self._files[file].get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self._place / file} cannot be read: {error}") from error


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`."""
    return str(dtype).removeprefix("torch.")
