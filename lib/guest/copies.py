"""Arguments for a process: copies, but tensors keep their memory, as `torch.multiprocessing` shares it."""

import io
import pickle
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

Own = Callable[[Any], Any] | None  # from a function or class to what the device has imported under its name


def own_copy(thing: Any, own: Own = None) -> Any:
    """A copy of a tuple, list or dict of arguments. Each tensor in it is another tensor with the same memory: what one
    process writes there, all see; gradients are each its own. Functions and classes are the device's own with `own`.
    What cannot be copied (locks, queues) is shared."""
    if isinstance(thing, tuple | list):
        return type(thing)(own_copy(x, own) for x in thing) if type(thing) in (tuple, list) else _copied(thing, own)
    if type(thing) is dict:
        return {key: own_copy(value, own) for key, value in thing.items()}
    return _copied(thing, own)


def _copied(thing: Any, own: Own) -> Any:
    file, outside = io.BytesIO(), []
    try:
        _Out(file, outside, own).dump(thing)
    except Exception:  # pickle raises whatever the things in question raise
        return thing
    file.seek(0)
    return _In(file, outside).load()


class _Out(pickle.Pickler):
    """What is not copied by pickle, it puts into `outside`."""

    def __init__(self, file: io.BytesIO, outside: list, own: Own):
        super().__init__(file)
        self._outside, self._numbers, self._own = outside, {}, own

    def persistent_id(self, thing: Any) -> int | None:
        if isinstance(thing, torch.Tensor):
            make = _same_memory
        elif self._own and isinstance(thing, FunctionType | type) and "<" not in thing.__qualname__:
            make = self._own  # by its name: in pickle's eyes, one that another device has imported is another thing
        else:
            return None
        if id(thing) not in self._numbers:
            self._numbers[id(thing)] = len(self._outside)
            self._outside.append(make(thing))
        return self._numbers[id(thing)]


class _In(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, outside: list):
        super().__init__(file)
        self._outside = outside

    def persistent_load(self, number: int) -> Any:
        return self._outside[number]


def _same_memory(x: torch.Tensor) -> torch.Tensor:
    if isinstance(x, torch.nn.Parameter):
        return torch.nn.Parameter(x.detach(), x.requires_grad)
    return x.detach().requires_grad_(x.requires_grad)
