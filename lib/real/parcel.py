"""Results on their way from process to process, without pickle: what comes over a network must not run code here.

A parcel is a line of JSON, which says what there is, and behind it the bytes of all tensors. Lists, dicts, numbers and
texts are rebuilt as they are. An object travels as the name of its class and its attributes. How it is rebuilt, and
which class is trusted, is in `unpacking`.
"""

import json
import sys
from collections import OrderedDict
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SCALARS = (type(None), bool, int, float, str)
SERIES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "size": torch.Size}
TENSORS = {"tensor": Tensor, "parameter": nn.Parameter}
NAMED = {"dtype": torch.dtype, "device": torch.device, "layout": torch.layout, "memory_format": torch.memory_format}


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
        if type(x) in SCALARS:
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
        for kinds, describe in ((SERIES, self._all), (TENSORS, self._tensor), (NAMED, str)):
            for name, kind in kinds.items():
                if type(x) is kind:
                    return [name, describe(x)]
        if type(x) in (dict, OrderedDict):
            return [type(x).__name__, [self._all(pair) for pair in x.items()]]
        if type(x) in (complex, bytes):
            return [type(x).__name__, [x.real, x.imag] if type(x) is complex else x.hex()]
        if isinstance(x, type | FunctionType | BuiltinFunctionType):
            if named(_name(x)) is not x:
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


def named(name: str) -> Any:
    """The class or function of this name, of a module that is imported already."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found
