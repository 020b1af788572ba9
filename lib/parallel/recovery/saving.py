"""Writing a checkpoint, so that whatever happens meanwhile the one before it is as it was.

What several devices hold, the first of them writes. Every file is written under another name, brought to the disk, and
then renamed, so a name never stands for half a file. The manifest comes last.

    save(folder, step, held, facts, group)                     the training waits

    saving = Saving(folder, step, held, facts, group)          a copy is made; the training waits for that alone
    saving.start()                                             the disk is written behind its back
    ...                                                        the next steps
    saving.finish()                                            before the next checkpoint, or the end
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from safetensors.torch import save as as_bytes

from lib.devices import Group
from lib.parallel.recovery.agree import of_everyone
from lib.parallel.recovery.blocks import Held
from lib.parallel.recovery.checkpoint import FORMAT, MANIFEST, complete, dtype_name


def save(folder: Path, step: int, held: Sequence[Held], facts: dict[str, Any], group: Group, keep: int = 2) -> Path:
    """All devices call it, after `step` steps; `facts` is whatever JSON can hold. The last `keep` checkpoints stay.

    Raises OSError on all devices when one of them could not write, and names it; the checkpoints before are as they
    were, so a training may go on.
    """
    saving = Saving(folder, step, held, facts, group)
    saving.write()
    return saving.finish(keep)


class Saving:
    """One checkpoint on its way to the disk. Making it copies what this device has to write; the training may go on.

    Communication: two small all-gathers when it is made, and four when it is finished.
    """

    def __init__(self, folder: Path, step: int, held: Sequence[Held], facts: dict[str, Any], group: Group):
        self._folder, self._step, self._facts, self._group = folder, step, facts, group
        self._place = folder / f"step-{step:06}"
        mine = {f"{one.name}@{block.start}": (one, block, where) for one in held for block, where in one.blocks()}
        everyone = of_everyone(group, [[key, list(block.shape)] for key, (_, block, _) in mine.items()])
        first = {(key, *shape): rank for rank in reversed(range(group.size)) for key, shape in everyone[rank]}
        self._own, self._contents = {}, []
        for key, (one, block, where) in mine.items():
            if first[key, *block.shape] == group.rank:
                self._own[key] = one.rows_held()[where].cpu().clone()
                self._contents.append([one.name, list(one.whole), dtype_name(one.x.dtype), key, *map(list, block)])
        self._written: dict[str, Any] | None = None
        self._fault: str | None = None
        self._thread: Thread | None = None

    def start(self) -> None:
        """Writes this device's file in a thread of its own. Without communication: a device's group is its own."""
        self._thread = Thread(target=self.write, name=f"checkpoint of step {self._step}")
        self._thread.start()

    def write(self) -> None:
        """Writes this device's file. What goes wrong is told by `finish`."""

        def attempt() -> dict[str, Any]:
            self._place.mkdir(parents=True, exist_ok=True)
            (self._place / MANIFEST).unlink(missing_ok=True)  # of a checkpoint that a resumed run writes again
            data = as_bytes(self._own)
            write_whole(self._place / _file(self._group.rank), data)
            return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

        self._written, self._fault = _tried(attempt)

    def finish(self, keep: int = 2) -> Path:
        """All devices call it: waits for the files, and makes them a checkpoint. See `save`."""
        if self._thread is not None:
            self._thread.join()
        self._agree(self._fault)
        files = {_file(rank): fact for rank, fact in enumerate(of_everyone(self._group, self._written))}
        contents = of_everyone(self._group, self._contents)
        self._agree(_tried(lambda: self._conclude(files, contents, keep))[1] if self._group.rank == 0 else None)
        return self._place

    def _conclude(self, files: dict[str, Any], contents: list[list], keep: int) -> None:
        tensors: dict[str, Any] = {}
        for file, blocks in zip(files, contents, strict=True):
            for name, whole, dtype, key, start, shape in blocks:
                tensor = tensors.setdefault(name, {"shape": whole, "dtype": dtype, "blocks": []})
                tensor["blocks"].append({"file": file, "key": key, "start": start, "shape": shape})
        manifest = {"format": FORMAT, "step": self._step, "facts": self._facts, "files": files, "tensors": tensors}
        write_whole(self._place / MANIFEST, json.dumps(manifest).encode())
        stay = {self._place, *complete(self._folder)[:keep]}
        for old in set(self._folder.glob("step-*")) - stay:  # older ones, and what a killed training had begun
            shutil.rmtree(old)
        for old in set(self._place.iterdir()) - {self._place / name for name in (MANIFEST, *files)}:
            old.unlink()

    def _agree(self, fault: str | None) -> None:
        faults = [f"rank {r}: {why}" for r, why in enumerate(of_everyone(self._group, fault)) if why]
        if faults:
            raise OSError(
                f"checkpoint of step {self._step}: {'; '.join(faults)}. The checkpoints before it are as they were"
            )


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


def _tried(attempt: Callable[[], Any]) -> tuple[Any, str | None]:
    """What `attempt` returns, and what went wrong with the disk."""
    try:
        return attempt(), None
    except OSError as error:
        return None, f"{error.strerror}: {error.filename}" if error.filename else str(error)


def _file(rank: int) -> str:
    return f"rank-{rank}.safetensors"
