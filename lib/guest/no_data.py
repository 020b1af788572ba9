"""Shapes only: a model that no laptop holds, on as many devices as it takes.

    Cluster(64, hardware="H100").run(no_data(guest(train)))

What PyTorch makes in floating point has a shape, a type and a size, but no data: parameters, and all that is computed
of them. What has integers has its data (ranks, tokens, masks, pickled objects), and so has what comes from outside
(NumPy, files). Bytes, FLOPs, times and peaks of memory are those of the run with data.

`.item()` of what has no data gives nan. What decides by values (`if` on a tensor, a mask that selects, saving) raises
NoValues, since any way to go on might be another one than with data.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type

from lib.devices.clock import only_shapes_are_asked
from lib.devices.group import Group
from lib.devices.tensors import tensors_in
from lib.guest.custom_ops import own_function
from lib.guest.functional import meet
from lib.guest.private_tensors import NEEDS_VALUES, FakeTensor, FakeTensorMode, mode_stack, pop_mode, push_mode
from lib.guest.program import Guest
from lib.guest.shapes import Shapes

aten = torch.ops.aten
# What makes integers of numbers, where no dtype says so.
MAKE_INTEGERS = ("randint", "randperm", "bincount")


class NoValues(RuntimeError):
    """A program asked for numbers where a run without data has none."""


class NoData(TorchDispatchMode):
    """While entered, this thread computes without data. `say` is told once that a number is missing; what the devices
    of a run `know` of shapes they share."""

    def __init__(self, say: Callable[[], None], know: dict):
        super().__init__()
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._shapes, self._say = Shapes(mode, know), say
        self._made = mode.fake_tensor_converter.meta_converter.tensor_memo

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):  # asked for all the time
            return args[0].fake_device if not args[0].fake_mode.in_kernel_invocation else torch.device("meta")
        if only_shapes_are_asked() or func.namespace in ("prim", "profiler"):
            return func(*args, **kwargs)
        if any(is_traceable_wrapper_subclass_type(kind) for kind in types):
            return NotImplemented  # a DTensor, say: it goes on with its shard
        given = tensors_in([*args, *kwargs.values()])
        without = any(isinstance(x, FakeTensor) for x in given)
        if not without and not _makes_floats(func, given, args, kwargs):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return self._number(args[0])
        if func.namespace == "_c10d_functional":
            return meet(func, args, kwargs, self._compute)
        if func.overloadpacket.__name__ == "all_gather_copy_in":  # FSDP2 gathers from its place in the whole
            whole, length, rank = args[1], args[3], args[4]
            return whole.narrow(0, length * rank, length), whole
        function = own_function(func.name())
        if function is not None:  # the program's own operator: what it computes and sends inside
            with self:
                return function(*args, **kwargs)
        if without and _only_writes(func, args, given):
            return args[0] if func._schema.returns else None
        return self._compute(func, args, kwargs)

    def _compute(self, func: Any, args: tuple, kwargs: dict) -> Any:
        try:
            return self._shapes.result(func, args, kwargs)
        except NEEDS_VALUES as error:
            raise NoValues(
                f"{func.overloadpacket.__name__} needs the values of a tensor, and this run has only shapes (no_data). "
                "Run it with data, on fewer devices or a smaller model"
            ) from error
        finally:
            if self._made:  # weak references, and a parameter that has one changes its type no more (`model.half()`)
                self._made.clear()

    def _number(self, x: Tensor) -> float:
        if x.dtype == torch.bool:
            raise NoValues(
                "the program decides by the value of a tensor (if, while, or assert), and this run has only shapes "
                "(no_data). Decide by something else, or run it with data, on fewer devices or a smaller model"
            )
        self._say()
        return float("nan")


def _only_writes(func: Any, args: tuple, given: list[Tensor]) -> bool:
    """Whether `func` does nothing but change numbers in place, which are not there: `x.add_(y)`, where shapes agree."""
    returns = func._schema.returns
    if returns and not (len(returns) == 1 and returns[0].alias_info is not None and returns[0].alias_info.is_write):
        return False
    if not func._schema.is_mutable or torch.Tag.inplace_view in func.tags:
        return False
    return not returns or given[0] is args[0] and all(x.shape == given[0].shape for x in given)


def _makes_floats(func: Any, given: list[Tensor], args: tuple, kwargs: dict) -> bool:
    """Whether `func`, which is given no tensor without data, makes one in floating point out of nothing."""
    place = kwargs.get("device")
    if place is not None and place.type == "meta":
        return False
    if given and not (place is not None and any(x.is_meta for x in given)):
        return False  # computed of what has data; or on the meta device, as the program itself has chosen
    dtype, name = kwargs.get("dtype"), func.overloadpacket.__name__
    if dtype is None and given:
        dtype = given[0].dtype
    if dtype is None:
        whole = name in MAKE_INTEGERS or name == "arange" and all(isinstance(x, int) for x in args)
        dtype = torch.int64 if whole else torch.get_default_dtype()
    return dtype.is_floating_point or dtype.is_complex


@contextmanager
def without_data(say: Callable[[], None], know: dict) -> Iterator[None]:
    """Inside, this thread computes without data. Modes around it, such as the clock's, see the same calls as before."""
    around = [pop_mode() for _ in mode_stack()]  # the innermost first
    try:
        with NoData(say, know), ExitStack() as again:
            for mode in reversed(around):
                again.enter_context(mode)
            yield
    finally:
        for mode in reversed(around):
            push_mode(mode)


def no_data(program: Guest, say: Callable[[str], None] = print) -> Guest:
    """The guest `program`, with shapes only. `say` is told, once per run, when a number is asked for."""
    said: set[str] = set()
    know: dict = {}
    sentence = "Without data, a number such as a loss is not known: .item() gives nan."

    def once() -> None:
        if not said:
            said.add(sentence)
            say(sentence)

    def on_device(group: Group) -> Any:
        return without_data(once, know)

    @contextmanager
    def around(size: int) -> Iterator[None]:
        said.clear()
        yield

    return replace(program, outside=(*program.outside, around), inside=(on_device, *program.inside))
