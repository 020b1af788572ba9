"""A tensor that is asked before anything is computed with it, and refuses by the name of what it was cut from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.devices.tensors import tensors_in


@dataclass(frozen=True)
class Origin:
    """What a piece is cut from: the parameter `name` of `shape`, of which, flattened, it holds the elements `where`.
    The others are with the devices `ranks` of the cluster. `cut`: what is cut is no whole parameter, but what a layer
    that is split over other devices holds of it."""

    name: str
    shape: torch.Size
    where: range
    rank: int
    ranks: tuple[int, ...]
    cut: bool = False

    @property
    def devices(self) -> int:
        """How many share the parameter."""
        return len(self.ranks)


unasked = torch._C.DisableTorchFunctionSubclass  # `with unasked()`: for who only looks, at many tensors
# What a tensor says of itself, from which no number is computed: an optimizer asks for it hundreds of times in a step.
_FACTS = frozenset("_version device dtype grad_fn is_leaf is_meta is_sparse layout ndim requires_grad shape".split())


class Careful(Tensor):
    """A tensor that is asked before anything is computed with it."""

    origin: Origin

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        called, kwargs = function.__name__, kwargs or {}
        if called in ("__get__", "__set__", "__delete__"):
            attribute = function.__self__.__name__
            if called == "__get__" and attribute in _FACTS:
                with unasked():
                    return function(*args)
            called = f".{attribute}" + {"__get__": ""}.get(called, "=")
        tensors = tensors_in([*args, *kwargs.values()])
        asked = [x for x in tensors if isinstance(x, Careful)]
        with unasked():
            for x in asked:
                if not x.may(called, [other for other in tensors if other is not x]):
                    raise RuntimeError(f"{called.lstrip('.')} of {x.what()}. {x.instead(called)}")
            result = function(*args, **kwargs)
            new = type(result) is Tensor and all(result is not x for x in tensors)
            return asked[0].like(called, result) if new else result

    def may(self, called: str, others: list[Tensor]) -> bool:
        """Whether `called`, with `others`, treats each element by itself."""
        raise NotImplementedError

    def like(self, called: str, result: Tensor) -> Tensor:
        """The new tensor that `called` made: careful too, if it is no more whole than this one."""
        return result

    def what(self) -> str:
        """Whose tensor this is, for a message."""
        of, where = self.origin, self.origin.where
        return (
            f"{of.name} {tuple(of.shape)}: rank {of.rank} of {of.devices} holds only its elements {where.start} to "
            f"{where.stop}"
        )

    def instead(self, called: str) -> str:
        """What to do, for a message."""
        raise NotImplementedError
