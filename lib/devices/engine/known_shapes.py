"""What operations make of tensors without numbers, remembered.

On `meta`, PyTorch works out in Python what shape a result has. That takes longer than all else that a kernel costs the
simulator; and every layer of every device asks the same again.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lib.devices.tensors import tensors_in

PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class Unknown(Exception):
    """An argument has numbers, or is something that may not be compared."""


class KnownShapes:
    """Of one run. An operation is asked once for each shape, stride and type of its arguments.

    Tensors on `meta` are not the only ones without numbers: a subclass of this class knows others.
    """

    kinds: tuple[type, ...] = (Tensor, nn.Parameter)  # themselves: what a subclass makes is its own affair

    def __init__(self) -> None:
        # What was made: tensors of their own, each by (shape, stride, dtype); "first" or "out", the argument that was
        # written to; or None: this operation is asked every time.
        self._known: dict[tuple, list[tuple] | str | None] = {}

    def result(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """`func(*args, **kwargs)`. Where all tensors are on `meta`, the same without asking PyTorch twice."""
        try:
            # Numbers without a point become numbers of the default dtype.
            alike = self._alike
            key = func, torch.get_default_dtype(), alike(args), *((k, alike(x)) for k, x in kwargs.items())
        except Unknown:
            return self.ask(func, args, kwargs)
        known = self._known.get(key)
        if known is None:
            out = self.ask(func, args, kwargs)
            if key not in self._known:
                self._known[key] = self._how(func, args, kwargs, out)
            return out
        if isinstance(known, str):
            return args[0] if known == "first" else kwargs["out"]
        made = tuple(self.make(*each) for each in known)
        return made if len(made) > 1 else made[0]

    def has_no_numbers(self, x: Tensor) -> bool:
        """Asked of tensors of `kinds`."""
        return x.is_meta

    def ask(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What PyTorch says."""
        return func(*args, **kwargs)

    def make(self, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of the first of `kinds`, with memory of its own."""
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")

    def _alike(self, x: Any) -> tuple:
        """The same for arguments of which an operation makes the same."""
        kind = type(x)
        if kind in self.kinds:
            if not self.has_no_numbers(x) or x.layout is not torch.strided:
                raise Unknown
            return x.shape, x.stride(), x.dtype
        if kind in PLAIN:
            return kind, x  # 1 equals 1.0 and True, but they make other types
        if kind in (list, tuple):
            return tuple(map(self._alike, x))
        raise Unknown

    def _how(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> list[tuple] | str | None:
        given = tensors_in([*args, *kwargs.values()])
        if not given:
            return None
        if func._schema.is_mutable:
            if torch.Tag.inplace_view in func.tags:
                return None  # it changes the shape of what it is given
            return "first" if out is args[0] else "out" if out is kwargs.get("out") else None
        made = [out] if isinstance(out, Tensor) else list(out) if type(out) is tuple else [None]
        own = all(type(x) is self.kinds[0] and self.has_no_numbers(x) and _has_all_its_memory(x) for x in made)
        if not own or {_memory(x) for x in made} & {_memory(x) for x in given}:
            return None  # a view, say
        return [(x.shape, x.stride(), x.dtype) for x in made]


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _has_all_its_memory(x: Tensor) -> bool:
    """Whether nothing of the memory lies before or behind the elements of `x`."""
    last = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)) + 1 if x.numel() else 0
    return x.storage_offset() == 0 and x.untyped_storage().nbytes() == last * x.element_size()
