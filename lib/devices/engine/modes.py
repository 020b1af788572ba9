"""PyTorch keeps its modes per thread, and a device is a thread: it takes over the caller's, or the run is refused."""

import contextvars
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def refuse_what_devices_would_not_see() -> None:
    """RuntimeError when the caller watches this thread in a way that would miss all that the devices do."""
    watching = [type(mode).__name__.lstrip("_") for mode in _get_current_dispatch_mode_stack()]
    watching += [type(m).__name__ for m in _get_current_function_mode_stack() if not isinstance(m, DeviceContext)]
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        watching.append("saved_tensors_hooks")
    if torch.autograd._profiler_enabled():
        watching.append("a profiler")
    if watching:
        raise RuntimeError(
            f"run: {', '.join(watching)} around Cluster.run would not see what the devices do, since each has its own "
            "thread. Enter it inside of the program; or let Cluster(size, hardware=...) count: its trace has the "
            "FLOPs, times and memory of every device"
        )


def modes_of_the_caller() -> Callable[[Callable[[int], None]], Callable[[int], None]]:
    """Returns a wrapper that makes a function run in the modes of this thread."""
    context = contextvars.copy_context()
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    device = torch.get_default_device()
    autocast = torch.is_autocast_enabled("cpu")
    autocast_dtype, autocast_cache = torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()

    def with_modes(function: Callable[[int], None]) -> Callable[[int], None]:
        def call(rank: int) -> None:
            torch.get_num_threads()  # asking makes a new thread take over the caller's set_num_threads
            with ExitStack() as modes:
                modes.enter_context(torch.inference_mode(inference))
                modes.enter_context(torch.set_grad_enabled(grad))
                if autocast:
                    modes.enter_context(torch.autocast("cpu", autocast_dtype, cache_enabled=autocast_cache))
                if device.type != "cpu":  # the default; entering it would cost a little at every operation
                    modes.enter_context(device)
                function(rank)

        return lambda rank: context.copy().run(call, rank)  # a context can be entered by one thread only

    return with_modes
