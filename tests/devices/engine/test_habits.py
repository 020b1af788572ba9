"""What people are used to from one process, or from torch.distributed: it works, or the error names the fix."""

import sys

import pytest
import torch
from devices.messages import says
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lib.devices import Cluster

A = torch.ones(8, 8)


def product(group):
    return (A @ A).sum()


def test_a_flop_counter_around_the_run_is_refused_and_one_inside_counts():
    with says(RuntimeError, "FlopCounterMode around Cluster.run would not see", "inside of the program"):
        with FlopCounterMode(display=False):
            Cluster(2).run(product)

    def inside(group):
        with FlopCounterMode(display=False) as counter:
            product(group)
        return counter.get_total_flops()

    assert Cluster(2).run(inside) == [2 * 8**3] * 2


def test_a_profiler_around_the_run_is_refused():
    with says(RuntimeError, "a profiler around Cluster.run"), profile(activities=[ProfilerActivity.CPU]):
        Cluster(2).run(product)


def test_hooks_for_saved_tensors_around_the_run_are_refused():
    with says(RuntimeError, "saved_tensors_hooks around Cluster.run"):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            Cluster(2).run(product)


def test_a_function_mode_around_the_run_is_refused_and_a_default_device_is_not():
    class Watching(torch.overrides.TorchFunctionMode):
        pass

    with says(RuntimeError, "Watching around Cluster.run"), Watching():
        Cluster(2).run(product)
    with torch.device("meta"):
        assert Cluster(2).run(lambda group: torch.ones(1).device.type) == ["meta"] * 2


@pytest.mark.parametrize("name", ["size", "rank"])
def test_size_and_rank_are_numbers(name):
    def program(group):
        return group.size() if name == "size" else group.rank()

    with pytest.raises(TypeError) as error:
        Cluster(2).run(program)
    assert f"{name} is a number, not a function: write group.{name} in place of group.{name}()" in error.value.__notes__


@pytest.mark.parametrize(("dtype", "op"), [(torch.float8_e4m3fn, "sum"), (torch.complex64, "max")])
def test_dtypes_that_cannot_be_combined(dtype, op):
    x = torch.zeros(4).to(dtype)
    for verb in ("all_reduce", "reduce_scatter", "reduce"):
        with says(
            TypeError, f"{verb}(", "on rank 0 of group (0, 1)", f"cannot combine {dtype} by {op!r}", "Convert first"
        ):
            Cluster(2).run(lambda group, verb=verb: getattr(group, verb)(x, op=op))
    assert Cluster(2).run(lambda group: group.all_gather(x).dtype) == [dtype] * 2


@pytest.mark.parametrize("code", [0, 3, None, "a text"])
def test_sys_exit_on_one_rank_names_the_rank(code):
    def program(group):
        if group.rank == 1:
            sys.exit(code)
        group.barrier()

    with says(RuntimeError, f"rank 1 of 2 left the program by sys.exit({code!r})", "ends with return"):
        Cluster(2).run(program)
