"""A checkpoint that any number of devices can read: files of blocks, and a manifest that says what they are.

    DIR/step-000200/rank-0.safetensors ...     the blocks that device 0 wrote
    DIR/step-000200/manifest.json              written last: what has none is no checkpoint

    {"format": 1, "step": 200, "facts": {...},
     "files": {"rank-0.safetensors": {"bytes": 1048, "sha256": "..."}},
     "tensors": {"parameter.norm.weight": {"shape": [64], "dtype": "float32",
                                           "blocks": [{"file": ..., "key": ..., "start": [0], "shape": [64]}]}}}

What several devices hold, the first of them writes. Every file is written under another name, brought to the disk, and
then renamed, so a name never stands for half a file. Whatever happens in between, the checkpoint before is as it was.
Safetensors and JSON: reading them runs nothing, and needs nothing of this book.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes

from lib.devices import Group
from lib.parallel.recovery.agree import of_everyone
from lib.parallel.recovery.blocks import Block, Held

FORMAT = 1
MANIFEST = "manifest.json"


def save(folder: Path, step: int, held: Sequence[Held], facts: dict[str, Any], group: Group, keep: int = 2) -> Path:
    """All devices call it, after `step` steps; `facts` is whatever JSON can hold. The last `keep` checkpoints stay.

    Raises OSError on all devices when one of them could not write, and names it; the checkpoints before are as they
    were, so a training may go on.
    """
    place = folder / f"step-{step:06}"
    mine = {f"{one.name}@{block.start}": (one, block, where) for one in held for block, where in one.blocks()}
    everyone = of_everyone(group, [[key, list(block.shape)] for key, (_, block, _) in mine.items()])
    first = {(key, *shape): rank for rank in reversed(range(group.size)) for key, shape in everyone[rank]}
    own = {key: what for key, what in mine.items() if first[key, *what[1].shape] == group.rank}

    def write() -> dict[str, Any]:
        place.mkdir(parents=True, exist_ok=True)
        (place / MANIFEST).unlink(missing_ok=True)  # of a checkpoint that a resumed run writes again
        data = as_bytes({key: one.rows_held()[where].contiguous().cpu() for key, (one, _, where) in own.items()})
        write_whole(place / _file(group.rank), data)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    told = _all_manage(group, f"checkpoint of step {step}", write)
    contents = [
        [one.name, list(one.whole), _name(one.x.dtype), key, *map(list, block)] for key, (one, block, _) in own.items()
    ]
    described = of_everyone(group, contents)

    def finish() -> None:
        if group.rank == 0:
            tensors: dict[str, Any] = {}
            for rank, blocks in enumerate(described):
                for name, whole, dtype, key, start, shape in blocks:
                    tensor = tensors.setdefault(name, {"shape": whole, "dtype": dtype, "blocks": []})
                    tensor["blocks"].append({"file": _file(rank), "key": key, "start": start, "shape": shape})
            files = {_file(rank): fact for rank, fact in enumerate(told)}
            manifest = {"format": FORMAT, "step": step, "facts": facts, "files": files, "tensors": tensors}
            write_whole(place / MANIFEST, json.dumps(manifest).encode())
            stay = {place, *complete(folder)[:keep]}
            for old in set(folder.glob("step-*")) - stay:  # older ones, and what a killed training had begun
                shutil.rmtree(old)
            for old in set(place.iterdir()) - {place / name for name in (MANIFEST, *files)}:
                old.unlink()

    _all_manage(group, f"checkpoint of step {step}", finish)
    return place


def complete(folder: Path) -> list[Path]:
    """The checkpoints that have a manifest, the newest first."""
    return sorted((file.parent for file in folder.glob(f"step-*/{MANIFEST}")), reverse=True)


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
        if tuple(tensor["shape"]) != one.whole or tensor["dtype"] != _name(one.x.dtype):
            raise ValueError(
                f"{place}: {one.name} is {tensor['dtype']} {tuple(tensor['shape'])} there, and {_name(one.x.dtype)} "
                f"{one.whole} here"
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


def write_whole(file: Path, data: bytes) -> None:
    """Under its name stands either all of `data`, on the disk, or what stood there before."""
    beside = file.with_name(file.name + ".part")
    with beside.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name itself
    finally:
        os.close(folder)


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


def _all_manage(group: Group, what: str, attempt: Any) -> list[Any]:
    """Each device does its part; what it returns, of all. OSError on all devices when one of them failed."""
    fact, fault = None, None
    try:
        fact = attempt()
    except OSError as error:
        fault = f"{error.strerror}: {error.filename}" if error.filename else str(error)
    told = of_everyone(group, [fact, fault])
    faults = [f"rank {rank}: {why}" for rank, (_, why) in enumerate(told) if why]
    if faults:
        raise OSError(f"{what}: {'; '.join(faults)}. The checkpoints before it are as they were")
    return [fact for fact, _ in told]


def _file(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
