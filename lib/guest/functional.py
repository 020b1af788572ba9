"""Functional collectives of tensors without data.

With data, PyTorch's own kernels call the process group. Without, PyTorch stops at the shape of the result; so here the
group is called in their place, or nobody would meet and nothing would be counted.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from lib.guest.private_tensors import resolve_process_group, waits_when_used

# From an operation to what the group does: (group, result, input, the other arguments) -> Work. What is summed how
# makes no difference without data.
CALLS: dict[str, Callable[[Any, Tensor, Tensor, dict], Any]] = {
    "all_reduce": lambda group, out, x, told: group.allreduce([out]),
    "broadcast": lambda group, out, x, told: group.broadcast([out], _from(told["src"])),
    "all_gather_into_tensor": lambda group, out, x, told: group.all_gather_single(out, x),
    "reduce_scatter_tensor": lambda group, out, x, told: group.reduce_scatter_single(out, x),
    "all_to_all_single": lambda group, out, x, told: group.all_to_all_single(
        out, x, list(told["output_split_sizes"]), list(told["input_split_sizes"])
    ),
}
_under_way: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # the storage of a result -> its Work


def meet(func: Any, args: tuple, kwargs: dict, shapes: Callable[[Any, tuple, dict], Any]) -> Any:
    """The result of `func`, an operation of `_c10d_functional`; `shapes` computes it without data.
    NotImplementedError for one that is not in CALLS."""
    name = func.overloadpacket.__name__.rstrip("_").removesuffix("_coalesced").removesuffix("_out")
    if name == "wait_tensor":
        work = _under_way.pop(args[0].untyped_storage(), None)
        if work is not None:
            work.wait()
        return args[0]
    if name == "_wrap_tensor_autograd":  # no collective: a tensor that waits when it is used
        return waits_when_used(args[0])
    if name not in CALLS:
        raise NotImplementedError(f"{func} without data: run it with data (leave no_data out)")
    told = dict(zip([argument.name for argument in func._schema.arguments], args, strict=False)) | kwargs
    group = told["group_name"]
    group = resolve_process_group(group) if isinstance(group, str) else group
    made = shapes(func, args, kwargs)
    several = isinstance(made, list | tuple)
    for out, x in zip(made, args[0], strict=True) if several else [(made, args[0])]:
        _under_way[out.untyped_storage()] = CALLS[name](group, out, x, told)
    return made


def _from(src: int) -> dist.BroadcastOptions:
    options = dist.BroadcastOptions()
    options.rootRank = src
    return options
