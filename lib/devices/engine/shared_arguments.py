"""What all devices are handed is one object: they may read it, and none may write into it."""

import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lib.devices.engine.wording import is_the_readers

MOST = 100_000  # objects that are looked through


class SharedArguments:
    """Remembers the state of every tensor, array and generator that a program gets from outside, to tell after a run
    which was changed.

    That is its arguments and default arguments, the object whose method it is, the variables around it and around the
    reader's functions that it calls; and what these hold. Real processes would each get a copy of their own. Here a
    gradient that two devices add to one tensor would be counted twice, and nobody would see it.

    In a list or a dict each device may have its own, `models[group.rank]`: what stands there may be changed by one.
    """

    def __init__(self, program: Callable[..., Any], args: tuple, kwargs: dict[str, Any]):
        search = _Search()
        for n, x in enumerate(args, 1):
            search.look(f"argument {n}", x)
        for name, x in kwargs.items():
            search.look(name, x)
        search.look("", program)
        self._before = [(name, x, _state(x)) for name, x in search.shared]
        # Name, thing, what it was when last looked at, and who has changed it.
        self._in_containers = [[name, x, _state(x), set()] for name, x in search.in_containers]

    def look_after(self, rank: int) -> None:
        """Device `rank` gives the turn away: what has changed since the last turn is its work."""
        for entry in self._in_containers:
            _, x, before, changed_by = entry
            now = _state(x)
            if now[0] != before[0]:
                entry[2] = now
                changed_by.add(rank)

    def check_unchanged(self, size: int) -> None:
        """Raises RuntimeError that names the first thing that some device changed, and the fix."""
        changed = [(name, x, before) for name, x, before in self._before if _state(x)[0] != before[0]]
        changed += [(name, x, before) for name, x, before, who in self._in_containers if len(who) > 1]
        for name, x, before in changed:
            what = "the gradient of " if isinstance(x, Tensor) and before[0][0] == _version(x) else ""
            shape = f", shape {tuple(x.shape)}" if hasattr(x, "shape") else ""
            raise RuntimeError(
                f"run: a device changed {what}{name}{shape}. All {size} devices were handed the same "
                "object, so it is now the work of them all together. Let the program make its own, on each device: "
                "build the model inside of it, or begin with model = copy.deepcopy(model), x = x.detach().clone()"
            )


class _Search:
    """Looks through objects for what a device could write into."""

    def __init__(self) -> None:
        self.shared: list[tuple[str, Any]] = []
        self.in_containers: list[tuple[str, Any]] = []
        self._seen: dict[int, Any] = {}

    def look(self, name: str, value: Any, contained: bool = False) -> None:
        """`contained`: in a list or a dict, where each device may have its own."""
        if id(value) in self._seen or len(self._seen) > MOST or isinstance(value, _PLAIN):
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor | torch.Generator) or _is_array(value):
            (self.in_containers if contained else self.shared).append((name, value))
        for part, thing, inside in _parts(name, value):
            self.look(part, thing, contained or inside)


_PLAIN = (str, bytes, int, float, complex, type(None), type, ModuleType, BuiltinFunctionType, torch.dtype, torch.device)


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any, bool]]:
    """What `value` holds: (name, thing, whether it stands in a container)."""
    if isinstance(value, nn.Module):
        for named in (value.named_parameters(), value.named_buffers()):
            yield from ((f"{part} of {name}", x, False) for part, x in named)
    elif isinstance(value, Optimizer):
        for group in value.param_groups:
            yield from ((f"parameter {i} of {name}", x, False) for i, x in enumerate(group["params"]))
    elif isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", x, True) for key, x in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"{name}[{i}]", x, True) for i, x in enumerate(value))
    elif isinstance(value, partial):
        yield name, value.func, False
        yield from ((f"argument {i} of the partial", x, False) for i, x in enumerate(value.args, 1))
        yield from ((key, x, False) for key, x in value.keywords.items())
    elif isinstance(value, MethodType):
        yield type(value.__self__).__name__, value.__self__, False
        yield name, value.__func__, False
    elif isinstance(value, FunctionType):
        if is_the_readers(value.__code__.co_filename):
            yield from ((key, x, False) for key, x in _around(value))
    elif hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in _NOT_LOOKED_INTO:
        yield from ((f"{name}.{key}" if name else key, x, False) for key, x in vars(value).items())


_NOT_LOOKED_INTO = ("torch", "numpy", "lib", "book")


def _around(function: FunctionType) -> Iterator[tuple[str, Any]]:
    defaults = function.__defaults__ or ()
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    yield from zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield key, cell.cell_contents
        except ValueError:  # no value yet
            continue
    for key in _names(function.__code__):
        if key in function.__globals__:
            yield key, function.__globals__[key]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _is_array(x: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(x, numpy.ndarray) and not x.dtype.hasobject


def _state(x: Any) -> tuple[tuple[int | bytes, ...], Tensor | None]:
    """Numbers that change when `x` does, and the gradient that one of them names: as long as it is kept, no other can
    have its number. Asked of every tensor at every turn, so it has to be cheap."""
    if isinstance(x, Tensor):
        grad = x.grad if x.is_leaf else None
        return (_version(x), id(grad), 0 if grad is None else _version(grad)), grad
    if isinstance(x, torch.Generator):
        return (x.get_state().numpy().tobytes(),), None
    return (zlib.crc32(x.tobytes()),), None


def _version(x: Tensor) -> int:
    """PyTorch counts the changes in place of a tensor, but not of one from inference mode. It is only looked at: what a
    tensor of its own kind refuses, as the pieces of ZeRO do, is not asked."""
    with torch._C.DisableTorchFunctionSubclass():
        return 0 if x.is_inference() else x._version
