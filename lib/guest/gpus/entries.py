"""Where a program names a device: each such function of PyTorch takes "cuda" for the CPU.

A TorchFunctionMode would do for a program's own lines, but PyTorch leaves it while it works inside of a function of its
own, all of `backward` among them. So the functions themselves are others, for as long as the run takes.
"""

import re
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lib.guest.gpus.cuda import Cuda
from lib.guest.private_tensors import device_constructors

LIKE = ("empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like")
NEW = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")
CPU = torch.device("cpu")


class Entries:
    """The stand-ins for the functions that are told a device. `cuda` checks the numbers of the devices."""

    def __init__(self, cuda: Cuda):
        self._cuda = cuda
        self._there: dict[int, weakref.ref] = {}  # storages that lie on a GPU in the program's eyes

    def cpu(self, device: Any, number: bool = False) -> Any:
        """What to say in place of `device`. Other things than a CUDA device stay as they are; with `number`, an integer
        names one, too. RuntimeError when there is no such device."""
        if isinstance(device, torch.device):
            named = device.type == "cuda"
        elif isinstance(device, str):
            named = re.fullmatch(r"cuda(:\d+)?", device) is not None
        else:
            named = number and isinstance(device, int) and not isinstance(device, bool)
        if not named:
            return device
        self._cuda._index(device)
        return CPU

    def told(self, function: Callable) -> Callable:
        """`function`, told the CPU wherever a GPU was named, and no pinned memory."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if "device" in kwargs:
                kwargs["device"] = self.cpu(kwargs["device"], number=True)
            if "pin_memory" in kwargs:
                kwargs["pin_memory"] = False
            return function(*map(self.cpu, args), **kwargs)

        return call

    def maker(self, function: Callable) -> Callable:
        """As `told`, for a function that makes a tensor: what is made for a GPU lies there."""
        told = self.told(function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            made = told(*args, **kwargs)
            if self.names_gpu(args, kwargs):
                self.put(made)
            return made

        return call

    def names_gpu(self, args: Iterable[Any], kwargs: dict[str, Any]) -> bool:
        """Whether the arguments of a call name a CUDA device."""
        device = kwargs.get("device")
        return self.cpu(device, number=True) is not device or any(self.cpu(x) is not x for x in args)

    # ---- tensors that move: the copies that a real move makes are made, or a program that changes the one in place
    # would find the other changed, too ----

    def put(self, x: Any) -> None:
        """From now on, `x` lies on a GPU."""
        if isinstance(x, torch.Tensor) and _has_storage(x):
            storage = x.untyped_storage()
            key = storage._cdata
            self._there[key] = weakref.ref(storage, lambda _: self._there.pop(key, None))

    def moved(self, x: torch.Tensor, out: torch.Tensor, to_gpu: bool) -> torch.Tensor:
        """`out`, made of `x` by a function that was to move it. Still `x` itself, it becomes a copy, unless it lies on
        a GPU and was to go there."""
        if out is x and not is_traceable_wrapper_subclass(x):
            if to_gpu and _has_storage(x) and x.untyped_storage()._cdata in self._there:
                return x
            clock = self._cuda._clock
            with clock.paused() if clock else nullcontext():  # not the work of a GPU
                out = x.clone()
        if to_gpu:
            self.put(out)
        return out

    def to(self, original: Callable) -> Callable:
        """Stands for Tensor.to."""

        @wraps(original)
        def to(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            first = args[0] if args else kwargs.get("device")
            place = self.cpu(first, number=True)
            if args:
                args = (place, *args[1:])
            elif "device" in kwargs:
                kwargs["device"] = place
            out = original(x, *args, **kwargs)
            to_gpu = place is not first
            return self.moved(x, out, to_gpu) if to_gpu or isinstance(first, str | torch.device) else out

        return to

    def cuda(self, original: Callable) -> Callable:
        """Stands for Tensor.cuda. `original` is Tensor.to."""
        to = self.to(original)
        return lambda x, device=None, *args, **kwargs: to(x, torch.device("cuda", self._cuda._index(device)))

    def back(self, original: Callable) -> Callable:
        """Stands for Tensor.cpu, and for Tensor.pin_memory, which copies, too. `original` is Tensor.cpu."""
        return lambda x, *args, **kwargs: self.moved(x, original(x), False)

    def module_to(self, original: Callable) -> Callable:
        """Stands for Module.to, which hands its device on to Tensor.to: only a number must become a name."""

        @wraps(original)
        def to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
            name = lambda x: torch.device("cuda", x) if isinstance(x, int) and not isinstance(x, bool) else x  # noqa: E731
            if "device" in kwargs:
                kwargs["device"] = name(kwargs["device"])
            return original(module, *map(name, args[:1]), *args[1:], **kwargs)

        return to


def _has_storage(x: torch.Tensor) -> bool:
    """Whether `x` lies in one piece of memory. Sparse tensors do not, nor those made of other tensors."""
    return x.layout == torch.strided and not is_traceable_wrapper_subclass(x)


def factories() -> list[tuple[Any, str]]:
    """Where PyTorch's functions stand that make a tensor on a device which they are told: (module or class, name)."""
    # The set is kept by PyTorch for `with torch.device(...)`; to ask for it now keeps our stand-ins out of it.
    names = {function.__name__ for function in device_constructors()} | set(LIKE)
    found = [(torch, name) for name in sorted(names) if hasattr(torch, name)]
    found += [(torch.fft, "fftfreq"), (torch.fft, "rfftfreq"), (torch.nested, "nested_tensor")]
    return found + [(torch.Tensor, name) for name in NEW]
