"""What any layer or model costs one device, counted while it runs: `measure`. No formula is used.

On the meta device, which has shapes and no numbers, 175 billion parameters need no memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lib.costs.saved_tensors import SavedBlock, watch_saved
from lib.devices import Cluster, Group
from lib.devices.engine.known_shapes import KnownShapes
from lib.devices.meters import Count
from lib.parallel.sharding.placement import Placement, Replicate

Shape = tuple[int, ...]
REPLICATE = Replicate()


@dataclass(frozen=True)
class Phase:
    """What one device does in one direction: FLOPs of matrix products, and what it sends, by verb."""

    flops: int
    sent: Mapping[str, Count]

    @property
    def calls(self) -> dict[str, int]:
        """How often each verb was called."""
        return {verb: count.calls for verb, count in self.sent.items()}

    @property
    def bytes_sent(self) -> int:
        """The bytes of all verbs."""
        return sum(count.bytes_sent for count in self.sent.values())


@dataclass(frozen=True)
class Measured:
    """What one device holds, keeps and does in one forward and one backward pass.

    `parameters` are numbers, not bytes. `kept` is what is there for the backward when the forward is done, besides the
    parameters. `inputs`, `outputs` and `weights` have the shapes of every submodule by its name ("": the whole).
    """

    parameters: int
    kept: Sequence[SavedBlock]
    forward: Phase
    backward: Phase
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    weights: Mapping[str, Shape]

    @property
    def activations(self) -> int:
        """The bytes of all that is kept."""
        return sum(block.size for block in self.kept)

    @property
    def flops(self) -> int:
        """Of both passes."""
        return self.forward.flops + self.backward.flops

    @property
    def calls(self) -> dict[str, int]:
        """How often each verb was called in both passes."""
        verbs = sorted(self.forward.calls.keys() | self.backward.calls.keys())
        return {verb: self.forward.calls.get(verb, 0) + self.backward.calls.get(verb, 0) for verb in verbs}

    @property
    def bytes_sent(self) -> int:
        """Of both passes."""
        return self.forward.bytes_sent + self.backward.bytes_sent


def measure(
    make: Callable[[Group], nn.Module],
    *inputs: Shape | Tensor,
    devices: int,
    cut: Placement = REPLICATE,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "meta",
    rank: int = 0,
    backward: bool = True,
) -> Measured:
    """Runs `make(group)` on whole `inputs`, forward and backward, and counts what device `rank` of `devices` does.

    An input is a shape, of random numbers of `dtype` that need a gradient, or a tensor of your own, such as tokens.
    `cut` says what each device gets of the inputs. The module is brought to `dtype`: parameters, and what it sends.
    Without `backward`, only the forward is run: what it keeps is the same, and half of the time is saved.

    Nothing is computed by formula: the module counts its parameters, autograd what it keeps, PyTorch the FLOPs, the
    engine what is sent. A layer of GPT-3 costs about 10 ms per device: all 96 on 8 devices, some ten seconds.
    """
    cluster, shapes_of_all = Cluster(devices), KnownShapes()

    def sent() -> dict[str, Count]:
        counts = {verb: cluster.meters.count(rank, verb) for verb in cluster.meters.verbs()}
        return {verb: count for verb, count in counts.items() if count.calls}

    def program(group: Group) -> Measured | None:
        with _Remembered(shapes_of_all) if device == "meta" else nullcontext():
            return observed(group)

    def observed(group: Group) -> Measured | None:
        watched = group.rank == rank  # the others do the same, and counting takes time
        with torch.device(device):
            module = make(group).to(dtype)
            pieces = [cut.piece(_tensor(x, dtype, device), group.size, group.rank) for x in inputs]
        # A clone, since a view would keep the whole alive, and that is what autograd would be seen to keep.
        pieces = [x.clone().requires_grad_(x.is_floating_point()) for x in pieces]
        before = sent() if watched else {}
        counter, shapes = FlopCounterMode(display=False), ({}, {})
        with counter if watched else nullcontext():
            with watch_saved(module) if watched else nullcontext(list) as kept:
                with _watch_shapes(module, *shapes) if watched else nullcontext():
                    y = module(*pieces)
            blocks, flops, half = kept(), counter.get_total_flops(), sent() if watched else {}
            if backward:
                y.backward(torch.ones_like(y))
        if not watched:
            return None
        named = dict(module.named_modules()).items()
        return Measured(
            sum(p.numel() for p in module.parameters()),
            blocks,
            Phase(flops, _less(half, before)),
            Phase(counter.get_total_flops() - flops, _less(sent(), half)),
            *shapes,
            {name: tuple(m.weight.shape) for name, m in named if isinstance(getattr(m, "weight", None), Tensor)},
        )

    return cluster.run(program)[rank]


class _Remembered(TorchDispatchMode):
    """While entered, this thread asks PyTorch once what an operation makes of tensors of such shapes."""

    def __init__(self, shapes: KnownShapes):
        super().__init__()
        self._shapes = shapes

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self._shapes.result(func, args, kwargs or {})


def _tensor(x: Shape | Tensor, dtype: torch.dtype, device: str) -> Tensor:
    return x.to(device) if isinstance(x, Tensor) else torch.randn(x, dtype=dtype, device=device)


def _less(after: Mapping[str, Count], before: Mapping[str, Count]) -> dict[str, Count]:
    """What came between the two."""
    return {verb: more for verb, count in after.items() if (more := count - before.get(verb, Count())).calls}


@contextmanager
def _watch_shapes(module: nn.Module, inputs: dict[str, Shape], outputs: dict[str, Shape]) -> Iterator[None]:
    """Inside, notes the shapes that pass every submodule of `module`."""

    def note(name: str) -> Callable:
        def hook(_: nn.Module, arguments: tuple, output: Tensor) -> None:
            inputs[name], outputs[name] = tuple(arguments[0].shape), tuple(output.shape)

        return hook

    hooks = [part.register_forward_hook(note(name)) for name, part in module.named_modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
