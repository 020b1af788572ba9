"""A parcel opened: every object is made without calling anything of its class.

And only if this process has imported the class already and has a reason to trust it: its own result holds such an
object, or the class is a module, a dataclass, a NamedTuple, or of this library.
"""

import dataclasses
import json
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from lib.real.parcel import NAMED, SERIES, TENSORS, named

_TRUSTED_MODULES = ("lib.", "torch.nn.")


def unpack(parcel: bytes, rank: int, own_kinds: set[str]) -> Any:
    """What `rank` has packed, its tensors in the memory of the CPU. `own_kinds` are those of this process's result.

    TypeError for a class that this process has no reason to trust, ValueError for what is no parcel.
    """
    try:
        end = 8 + int.from_bytes(parcel[:8])
        root, nodes = json.loads(parcel[8:end])
        return _Unpacking(nodes, bytearray(parcel[end:]), own_kinds, rank).value(root)
    except (ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise ValueError(f"what came from rank {rank} is no result of a program: {error}") from error


class _Unpacking:
    """From nodes to objects, each made once."""

    def __init__(self, nodes: list[list], data: bytearray, own_kinds: set[str], rank: int):
        self._nodes, self._data, self._own_kinds, self._rank = nodes, data, own_kinds, rank
        self._made: dict[int, Any] = {}

    def value(self, reference: Any) -> Any:
        """The inverse of `reference`."""
        if not isinstance(reference, list):
            return reference
        (number,) = reference
        if number not in self._made:
            self._made[number] = self._make(number, *self._nodes[number])
        return self._made[number]

    def _all(self, references: list) -> list:
        return [self.value(one) for one in references]

    def _make(self, number: int, kind: str, what: Any, content: Any = None) -> Any:
        if kind in SERIES:
            if kind != "list":
                return SERIES[kind](self._all(what))
            made = self._made[number] = []  # it may hold itself
            made += self._all(what)
            return made
        if kind in TENSORS:
            return self._tensor(TENSORS[kind], *what)
        if kind in NAMED:
            return torch.device(what) if kind == "device" else _constant(what, NAMED[kind])
        match kind:
            case "dict" | "OrderedDict":
                made = self._made[number] = {} if kind == "dict" else OrderedDict()
                made.update(self._all(pair) for pair in what)
                return made
            case "complex":
                return complex(*what)
            case "bytes":
                return bytes.fromhex(what)
            case "global":
                return self._trusted(what)
            case "array":
                return self.value(what).numpy()[()]  # a single number as one of NumPy's, as it was
            case "member":
                return self._trusted(what)[content]
            case "named tuple":
                return tuple.__new__(self._trusted(what), self._all(content))
            case "object":
                made = self._made[number] = object.__new__(self._trusted(what))
                made.__dict__.update(self.value(content) or {})
                return made
        raise ValueError(f"there is no kind {kind!r}")

    def _trusted(self, name: str) -> Any:
        found = named(name)
        is_class = isinstance(found, type)
        if found is not None and (
            name in self._own_kinds
            or name.startswith(_TRUSTED_MODULES)
            or (is_class and (issubclass(found, nn.Module) or dataclasses.is_dataclass(found)))
            or (is_class and issubclass(found, tuple) and hasattr(found, "_fields"))
        ):
            return found
        raise TypeError(
            f"the result of rank {self._rank} holds {name}, which is not rebuilt here: this process returned none "
            "itself, and it is no module, dataclass or NamedTuple. Return tensors, numbers, strings, lists and dicts"
        )

    def _tensor(self, kind: type, dtype: str, shape: list, stride: list, needs_grad: bool, where: Any) -> Tensor:
        like = {"dtype": _constant(dtype, torch.dtype), "device": "meta" if where == "meta" else "cpu"}
        x = torch.empty_strided(shape, stride, **like)
        if where != "meta" and x.numel():
            flat = x.as_strided((x.numel(),), (1,)).view(torch.uint8)
            flat.copy_(torch.frombuffer(self._data, dtype=torch.uint8, count=flat.numel(), offset=where))
        return x.requires_grad_(needs_grad) if kind is Tensor else kind(x, requires_grad=needs_grad)


def _constant(name: str, kind: type) -> Any:
    """`float32` or `torch.float32`, of `kind`."""
    found = getattr(torch, name.removeprefix("torch."))
    if not isinstance(found, kind):
        raise ValueError(f"{name} is no {kind.__name__}")
    return found
