"""Some rows of a tensor in a .safetensors file, without reading the others.

Such a file begins with 8 bytes that say how long its table of contents is; then comes the table, in JSON, with type,
shape and place of every tensor; then the numbers, row after row. So a device can read the rows that are its own and
leave the rest on the disk. Every byte read is counted.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from lib.parallel.gpt.files import read_json
from lib.parallel.sharding.placement import Placement, Shard

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in `file` from byte `start` on."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next; a tensor of one dim has rows of one number."""
        return prod(self.shape[1:]) * self.dtype.itemsize


class HubFolder:
    """The weights of a folder as a hub keeps them, by name: one file, or several with their index.

    Only the tables of contents are read; `read` reads the rest, as far as it is asked for. `bytes_read` counts both.
    FileNotFoundError names a missing file; ValueError one that was cut off, or holds something else.
    """

    def __init__(self, path: str | Path):
        self.bytes_read = 0
        self.stored: dict[str, Stored] = {}
        for file in _files(Path(path)):
            self._contents(file)
        self.contents_bytes = self.bytes_read

    def read(self, tensors: Sequence[Stored], layout: Placement, parts: int, rank: int) -> Tensor:
        """What device `rank` of `parts` holds of `tensors`, which lie one after the other in one dense weight.

        Whatever the layout, it says which rows these are: it is asked to cut their numbers.
        """
        if layout == Shard(1):
            return self._columns(*tensors, parts, rank)
        rows = sum(tensor.shape[0] for tensor in tensors)
        own = layout.piece(torch.arange(1, rows + 1), parts, rank).tolist()  # from 1 on: a padded row is 0
        shape = tensors[0].shape[1:]
        filled = bytearray(len(own) * tensors[0].row_bytes)  # zeros, and so the padding stays
        at = 0
        for first, count in _runs(own):
            if first:
                self._rows(tensors, first - 1, count, memoryview(filled)[at:])
            at += count * tensors[0].row_bytes
        return torch.frombuffer(filled, dtype=tensors[0].dtype).reshape(len(own), *shape)

    def _rows(self, tensors: Sequence[Stored], first: int, count: int, into: memoryview) -> None:
        """Rows of the tensors one after the other: those of a run may belong to two of them."""
        for tensor in tensors:
            here = min(count, max(0, tensor.shape[0] - first))
            if here:
                size = here * tensor.row_bytes
                with tensor.file.open("rb", buffering=0) as file:
                    self._fill(file, tensor.start + first * tensor.row_bytes, into[:size], tensor.file)
                into, count = into[size:], count - here
            first = max(0, first - tensor.shape[0])

    def _columns(self, tensor: Stored, parts: int, rank: int) -> Tensor:
        """A device's columns: a piece of every row."""
        own = Shard(0).piece(torch.arange(tensor.shape[1]), parts, rank)
        size, before = len(own) * tensor.dtype.itemsize, int(own[0]) * tensor.dtype.itemsize
        filled = bytearray(tensor.shape[0] * size)
        with tensor.file.open("rb", buffering=0) as file:
            for row in range(tensor.shape[0]):
                into = memoryview(filled)[row * size : (row + 1) * size]
                self._fill(file, tensor.start + row * tensor.row_bytes + before, into, tensor.file)
        return torch.frombuffer(filled, dtype=tensor.dtype).reshape(tensor.shape[0], len(own))

    def _fill(self, file: BinaryIO, start: int, into: memoryview, path: Path) -> None:
        file.seek(start)
        done = 0
        while done < len(into):
            more = file.readinto(into[done:])
            if not more:
                raise ValueError(f"{path} was cut off: it ends before byte {start + len(into)}; download it again")
            done += more
        self.bytes_read += done

    def _contents(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            length = bytearray(8)
            if size >= 8:
                self._fill(file, 0, memoryview(length), path)
            header = bytearray(int.from_bytes(length, "little"))
            if size < 8 or len(header) > size - 8:
                raise ValueError(f"{path} is no .safetensors file, or was cut off")
            self._fill(file, 8, memoryview(header), path)
        try:
            table = json.loads(header)
        except ValueError as error:
            raise ValueError(f"{path} is no .safetensors file: its table of contents is not JSON") from error
        table.pop("__metadata__", None)
        for name, entry in table.items():
            if entry["dtype"] not in TYPES:
                raise ValueError(
                    f"{path}: {name} is of type {entry['dtype']}, and only {', '.join(TYPES)} are read: quantized "
                    "weights are not"
                )
            first, last = (8 + len(header) + offset for offset in entry["data_offsets"])
            if last > size:
                raise ValueError(f"{path} was cut off: {name} ends at byte {last:,} of {size:,}; download it again")
            self.stored[name] = Stored(path, name, TYPES[entry["dtype"]], tuple(entry["shape"]), first)


def _files(path: Path) -> list[Path]:
    """The files with weights that `path`, a folder, a file or an index, means."""
    if path.is_dir():
        found = [path / name for name in (FILE, INDEX) if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path} is a folder without weights: neither {FILE} nor {INDEX} is there")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    if not path.name.endswith(".index.json"):
        return [path]
    where = read_json(path).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{path} is no index of weights: it has no weight_map")
    files = [path.with_name(Path(name).name) for name in sorted(set(where.values()))]  # it may not lead elsewhere
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there, but {path.name} says that it holds a part of the weights")
    return files


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Numbers that follow each other, as (first, how many); zeros, which are padding, each as (0, 1)."""
    first = count = 0
    for number in numbers:
        if count and first and number == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
