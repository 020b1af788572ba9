"""Every private interface that guests lean on, each under a name of our own: here those of PyTorch's groups.

Those of its tensors, of DTensor and of Python stand beside, in `private_*.py`. They belong to one version of PyTorch.
After an update, `tests/guest/test_private.py` says which one has moved; a reader with another version is told so in a
sentence.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

WRITTEN_FOR = "2.13"


def take(module: str, name: str) -> Any:
    """`module.name`. RuntimeError says which of the two versions is the trouble when there is none."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise RuntimeError(
            f"lib.guest needs {module}.{name}, a private interface that PyTorch {torch.__version__} does not have. "
            f"It is written for PyTorch {WRITTEN_FOR}: install that one (see requirements.txt)"
        ) from None


c10d = importlib.import_module("torch.distributed.distributed_c10d")
rendezvous = importlib.import_module("torch.distributed.rendezvous")
logger = importlib.import_module("torch.distributed.c10d_logger")
CPP = "torch._C._distributed_c10d"


class World:
    """What torch.distributed knows of the groups of one process; it looks it up in `distributed_c10d._world`."""

    def __init__(self) -> None:
        self.default_pg: dist.ProcessGroup | None = None
        self.group_count = 0
        self.pg_map: dict = {}
        self.pg_names: dict = {}
        self.pg_group_ranks: dict = {}
        self.pg_backend_config: dict = {}
        self.tags_to_pg: dict = {}
        self.pg_to_tag: dict = {}
        self.pg_coalesce_state: dict = {}
        self.comms: list = []

    @property
    def pg_config_info(self) -> list[dict[str, Any]]:
        """A table of all groups, as torch.distributed words it."""
        return take(c10d.__name__, "_World").pg_config_info.fget(self)


def world() -> Any:
    """The world of the process at the moment."""
    return take(c10d.__name__, "_world")


def set_world(world: Any) -> None:
    """From now on the process's world is `world`."""
    c10d._world = world


@contextmanager
def patched(module: Any, **replacements: Any) -> Iterator[None]:
    """While entered, a module or class has other attributes. Each must be there before."""
    is_class = isinstance(module, type)
    before = {name: getattr(module, name) if is_class else take(module.__name__, name) for name in replacements}
    for name, value in replacements.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def groups_made_by(make: Callable, meet: Callable) -> Any:
    """While entered, `dist.init_process_group` and `dist.new_group` ask `make(size, rank, ranks, backend, store, name,
    **options)` for a group, and `meet(method, rank, world_size, timeout=...)` for (store, rank, world_size)."""
    return patched(c10d, _new_process_group_helper=make, rendezvous=meet)


def quiet_errors() -> Any:
    """While entered, an error of a collective is not logged. The log asks for the version of NCCL when that is the
    backend's name, and fails where it is not installed, in place of the error itself."""
    return patched(logger, _get_msg_dict=lambda name, *args, **kwargs: {})


def register(group: dist.ProcessGroup, name: str, backend: str, store: dist.Store, tag: str | None) -> None:
    """Enters a new group in the lists of the process's world, and under its name in those of C++."""
    how = {"pg_tag": f"user:{tag}"} if tag else {"add_to_default_tag": True}
    config = str(dist.BackendConfig(dist.Backend(backend))) if hasattr(dist, "BackendConfig") else backend
    take(c10d.__name__, "_register_pg_in_world")(
        group, backend_name=backend, store=store, group_name=name, backend_config=config, **how
    )


def group_with_tag(tag: str, ranks: list[int]) -> dist.ProcessGroup | None:
    """The group that was made before with this tag and these ranks."""
    return take(c10d.__name__, "_find_pg_by_ranks_and_tag")(tag, ranks)


_isolated = 0  # runs under way


@contextmanager
def names_by_thread() -> Iterator[None]:
    """While entered, C++ keeps the names of groups for each thread: all devices may call their groups "0"."""
    global _isolated
    isolate = take(CPP, "_set_thread_isolation_mode")
    _isolated += 1  # a device may start a run of its own, and there is no way to ask what was set
    isolate(True)
    try:
        yield
    finally:
        _isolated -= 1
        if not _isolated:
            isolate(False)


def forget_names_of_this_thread() -> None:
    """C++ forgets the groups of the thread that ends; the system gives its number to another."""
    take(CPP, "_unregister_all_process_groups")()


def in_backward() -> bool:
    """Whether this thread runs a backward."""
    return take("torch._C", "_current_graph_task_id")() != -1


def ddps_first_look(unseen: Callable[[], Any]) -> Any:
    """While entered, DDP compares its parameters with those of the others within a context `unseen()`."""
    look = take("torch.distributed", "_verify_params_across_processes")

    def look_unseen(*args: Any) -> None:
        with unseen():
            look(*args)

    return patched(dist, _verify_params_across_processes=look_unseen)


def reducer() -> type:
    """What sums up the gradients of a DDP: a class of C++."""
    return take(CPP, "Reducer")


def collect_all() -> Callable:
    """By which `torch.futures` waits for several."""
    return take("torch._C", "_collect_all")


def after_backward(function: Callable[[], None]) -> None:
    """Calls `function` when the backward that runs is over."""
    take("torch.autograd", "Variable")._execution_engine.queue_callback(function)


@contextmanager
def unwatched() -> Iterator[None]:
    """While entered, this thread's modes and hooks are laid aside: a run that a device starts has its own."""
    hooks = take("torch._C._autograd", "_top_saved_tensors_default_hooks")(True)
    if hooks is not None:
        take("torch._C._autograd", "_pop_saved_tensors_default_hooks")()
    try:
        with _disable_current_modes():
            yield
    finally:
        if hooks is not None:
            take("torch._C._autograd", "_push_saved_tensors_default_hooks")(*hooks)
