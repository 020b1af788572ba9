"""Arguments for a process: copies, but tensors keep their memory, as `torch.multiprocessing` shares it."""

import io
import pickle
from typing import Any

import torch


def own_copy(thing: Any) -> Any:
    """A copy of a tuple, list or dict of arguments. Each tensor in it is another tensor with the same memory: what one
    process writes there, all see; gradients are each its own. What cannot be copied (locks, queues) is shared."""
    if isinstance(thing, tuple | list):
        return type(thing)(map(own_copy, thing)) if type(thing) in (tuple, list) else _copied(thing)
    if type(thing) is dict:
        return {key: own_copy(value) for key, value in thing.items()}
    return _copied(thing)


def _copied(thing: Any) -> Any:
    file, tensors = io.BytesIO(), []
    try:
        _Out(file, tensors).dump(thing)
    except Exception:  # pickle raises whatever the things in question raise
        return thing
    file.seek(0)
    return _In(file, tensors).load()


class _Out(pickle.Pickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]):
        super().__init__(file)
        self._tensors, self._numbers = tensors, {}

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, torch.Tensor):
            return None
        if id(thing) not in self._numbers:
            self._numbers[id(thing)] = len(self._tensors)
            self._tensors.append(thing)
        return self._numbers[id(thing)]


class _In(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]):
        super().__init__(file)
        self._tensors = [_same_memory(x) for x in tensors]

    def persistent_load(self, number: int) -> torch.Tensor:
        return self._tensors[number]


def _same_memory(x: torch.Tensor) -> torch.Tensor:
    if isinstance(x, torch.nn.Parameter):
        return torch.nn.Parameter(x.detach(), x.requires_grad)
    return x.detach().requires_grad_(x.requires_grad)
