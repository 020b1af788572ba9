"""What the forward of a layer keeps for its backward, block by block, as autograd itself tells it."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


@dataclass(frozen=True)
class SavedBlock:
    """`size` bytes that `module` of the layer ("": itself, or what runs around it) kept, first as a tensor of `shape`.

    A block is what PyTorch allocates once, a storage. However many tensors are views of it, it counts once, and whole.
    """

    module: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    size: int


def saved_activations(layer: nn.Module, *inputs: Any) -> list[SavedBlock]:
    """Runs the forward of `layer`, and lists what is then kept for its backward. The result is thrown away."""
    with watch_saved(layer) as kept:
        output = layer(*inputs)  # as long as it lives, so does the graph that keeps the blocks
    blocks = kept()
    del output
    return blocks


@contextmanager
def watch_saved(layer: nn.Module) -> Iterator[Callable[[], list[SavedBlock]]]:
    """While entered, notes what forwards of `layer` save. Gives a function that lists what of it is still kept, in the
    order in which it was saved.

    The layer's parameters are left out: they are there anyway. Its inputs count, where the backward needs them. Inside
    of a `checkpoint` only that one's inputs are kept. Works on any device, "meta" included, and on each device of a
    group.
    """
    seen: list[weakref.ref[_Saved]] = []

    def kept() -> list[SavedBlock]:
        known = {p.untyped_storage()._cdata for p in layer.parameters()}
        blocks = []
        for saved in filter(None, (ref() for ref in seen)):
            storage = saved.tensor.untyped_storage()
            if storage._cdata not in known:
                known.add(storage._cdata)
                blocks.append(SavedBlock(saved.module, tuple(saved.tensor.shape), saved.tensor.dtype, storage.nbytes()))
        return blocks

    with _modules_running(layer) as running:

        def save(x: Tensor) -> _Saved:
            saved = _Saved(x.detach(), running[-1])  # detached, or an output kept for itself would keep its graph alive
            seen.append(weakref.ref(saved))
            return saved

        with saved_tensors_hooks(save, lambda saved: saved.tensor):
            yield kept


@dataclass(eq=False)
class _Saved:
    """What the graph keeps in the place of a tensor: it dies when the graph no longer needs the tensor."""

    tensor: Tensor
    module: str


@contextmanager
def _modules_running(layer: nn.Module) -> Iterator[list[str]]:
    """The names of the modules of `layer` whose forward runs now; the innermost is last."""
    running = [""]

    def starts(name: str) -> Any:
        return lambda module, args: running.append(name)

    def ends(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    hooks = []
    for name, module in layer.named_modules():
        hooks += [module.register_forward_pre_hook(starts(name)), module.register_forward_hook(ends)]
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()
