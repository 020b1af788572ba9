"""Results on their way from process to process, without pickle: what comes over a network must not run code here.

A parcel is a line of JSON, which says what there is, and behind it the bytes of all tensors. Lists, dicts, numbers and
texts are rebuilt as they are. An object travels as the name of its class and its attributes. It is rebuilt without
calling anything of the class, and only if this process has imported the class already and has a reason to trust it:
its own result holds such an object, or the class is a module, a dataclass, a NamedTuple, or of this library.
"""

import dataclasses
import json
import sys
from collections import OrderedDict
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_SCALARS = (type(None), bool, int, float, str)
_SERIES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "size": torch.Size}
_TENSORS = {"tensor": Tensor, "parameter": nn.Parameter}
_NAMED = {"dtype": torch.dtype, "device": torch.device, "layout": torch.layout, "memory_format": torch.memory_format}
_TRUSTED_MODULES = ("lib.", "torch.nn.")


def pack(output: Any, rank: int) -> tuple[bytes, set[str]]:
    """What `rank` returned as bytes, and what kinds of objects are in it. TypeError when something cannot travel."""
    packing = _Packing()
    try:
        root = packing.reference(output)
    except (TypeError, RecursionError) as error:
        raise TypeError(
            f"rank {rank} returned a {type(output).__name__} that cannot be sent to another process: {error}. Return "
            "tensors, numbers, strings, and lists and dicts of these"
        ) from error
    head = json.dumps([root, packing.nodes]).encode()
    kinds = {node[1] for node in packing.nodes if node[0] in ("object", "named tuple", "member", "global")}
    return b"".join([len(head).to_bytes(8), head, *packing.data]), kinds


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


def _name(x: type | FunctionType) -> str:
    return f"{x.__module__}:{x.__qualname__}"


class _Packing:
    """`nodes` describe all objects but scalars, in the order in which they were met; `data` are the tensors' bytes."""

    def __init__(self) -> None:
        self.nodes: list[list] = []
        self.data: list[bytes] = []
        self._end = 0
        self._met: dict[int, tuple[int, Any]] = {}  # id -> number of its node; the object is kept, and so its id

    def reference(self, x: Any) -> Any:
        """A scalar as it is, of anything else the number of its node, in a list: what is met twice travels once."""
        if type(x) in _SCALARS:
            return x
        if id(x) not in self._met:
            self._met[id(x)] = len(self.nodes), x
            node: list = []
            self.nodes.append(node)
            node += self._describe(x)
        return [self._met[id(x)][0]]

    def _all(self, some: Any) -> list:
        return [self.reference(x) for x in some]

    def _describe(self, x: Any) -> list:
        for kinds, describe in ((_SERIES, self._all), (_TENSORS, self._tensor), (_NAMED, str)):
            for name, kind in kinds.items():
                if type(x) is kind:
                    return [name, describe(x)]
        if type(x) in (dict, OrderedDict):
            return [type(x).__name__, [self._all(pair) for pair in x.items()]]
        if type(x) in (complex, bytes):
            return [type(x).__name__, [x.real, x.imag] if type(x) is complex else x.hex()]
        if isinstance(x, type | FunctionType | BuiltinFunctionType):
            if _found(_name(x)) is not x:
                raise TypeError(f"{x.__qualname__} is defined inside of a function; other processes cannot find it")
            return ["global", _name(x)]
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            return ["named tuple", _name(type(x)), self._all(x)]
        if isinstance(x, Enum):
            return ["member", _name(type(x)), x.name]
        if isinstance(x, np.ndarray | np.generic):
            return ["array", self.reference(torch.from_numpy(np.array(x)))]
        return self._object(x)

    def _object(self, x: Any) -> list:
        stand_in = getattr(x, "abroad", None)  # what an object that lives in one process is elsewhere
        if stand_in is not None and not isinstance(x, type):
            x = stand_in()
        make, new, state, *content = (*object.__reduce_ex__(x, 2), None, None)[:5]  # TypeError for a lock, a file, ...
        if (
            make.__name__ != "__newobj__"
            or len(new) > 1
            or content != [None, None]
            or not isinstance(state, dict | None)
        ):
            raise TypeError(f"it holds a {type(x).__name__}")
        return ["object", _name(type(x)), self.reference(state)]

    def _tensor(self, x: Tensor) -> list:
        if x.layout != torch.strided or x.is_quantized:
            raise TypeError(f"it holds a tensor that is not dense, {x.layout}")
        x, needs_grad = x.detach().resolve_conj().resolve_neg(), x.requires_grad
        if not x.permute(sorted(range(x.ndim), key=x.stride, reverse=True)).is_contiguous():
            x = x.contiguous()  # it has gaps, or elements that lie in one place
        where = "meta"
        if not x.is_meta:
            where = self._end
            flat = x.as_strided((x.numel(),), (1,)).cpu().view(torch.uint8)
            self.data.append(flat.numpy().tobytes())
            self._end += len(self.data[-1])
        return [str(x.dtype).removeprefix("torch."), list(x.shape), list(x.stride()), needs_grad, where]


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
        if kind in _SERIES:
            if kind != "list":
                return _SERIES[kind](self._all(what))
            made = self._made[number] = []  # it may hold itself
            made += self._all(what)
            return made
        if kind in _TENSORS:
            return self._tensor(_TENSORS[kind], *what)
        if kind in _NAMED:
            return torch.device(what) if kind == "device" else _constant(what, _NAMED[kind])
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
        found = _found(name)
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


def _found(name: str) -> Any:
    """The class or function of this name, of a module that is imported already."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found
