"""Operators that a program adds to PyTorch call the functions of the device that uses them."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lib.devices import Cluster
from lib.guest.no_data import no_data
from lib.guest.program import guest


def sums_within_its_row():
    """An operator whose function knows the group of its own device, as those of tensor parallelism do."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows = [dist.new_group(row) for row in ([0, 1], [2, 3])]
    mine = rows[rank // 2]

    @torch.library.custom_op("tests_guest::row_sum", mutates_args=())
    def row_sum(x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total, group=mine)
        return total

    dist.barrier()  # now all have defined it
    row_sum.register_fake(lambda x: torch.empty_like(x))
    dist.barrier()
    torch.library.register_autograd("tests_guest::row_sum", lambda ctx, gradient: gradient * (rank + 1))
    dist.barrier()
    x = torch.tensor([10.0**rank], requires_grad=True)
    y = row_sum(x)
    y.backward()
    return y.item(), torch.ops.tests_guest.row_sum(x.detach()).item(), x.grad.item()


def test_each_device_calls_its_own_function():
    for _ in range(2):  # a second run may define it anew
        expected = [(11.0, 11.0, 1.0), (11.0, 11.0, 2.0), (1100.0, 1100.0, 3.0), (1100.0, 1100.0, 4.0)]
        assert Cluster(4).run(guest(sums_within_its_row)) == expected
    assert not hasattr(torch.ops.tests_guest, "row_sum")


def gathers_its_own_rows():
    """Each device gives the operator another shape, and the operator sends."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    @torch.library.custom_op("tests_guest::first_rows", mutates_args=())
    def first_rows(x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total[: rank + 1].clone()

    first_rows.register_fake(lambda x: x.new_empty(rank + 1, x.shape[1]))
    dist.barrier()
    return tuple(first_rows(torch.ones(3, 2)).shape)


def test_without_data_its_own_shapes_and_messages():
    shapes, bytes_sent = [], []
    for prepare in (lambda program: program, no_data):
        cluster = Cluster(3)
        shapes.append(cluster.run(prepare(guest(gathers_its_own_rows))))
        bytes_sent.append([cluster.meters.count(rank, "all_reduce").bytes_sent for rank in range(3)])
    assert shapes == [[(1, 2), (2, 2), (3, 2)]] * 2
    assert bytes_sent == [[32] * 3] * 2


def defines_in_a_library(times):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    kept = []
    for _ in range(times):
        library = torch.library.Library("tests_guest_lib", "DEF")
        library.define("plus_rank(Tensor x) -> Tensor")
        library.impl("plus_rank", lambda x: x + rank, "CompositeExplicitAutograd")
        kept.append(library)
    dist.barrier()
    return torch.ops.tests_guest_lib.plus_rank(torch.zeros(1)).item()


def test_a_library_is_made_by_each_device_once():
    assert Cluster(3).run(guest(defines_in_a_library, 1)) == [0.0, 1.0, 2.0]
    with pytest.raises(RuntimeError, match="Only a single TORCH_LIBRARY"):
        Cluster(3).run(guest(defines_in_a_library, 2))
    assert Cluster(3).run(guest(defines_in_a_library, 1)) == [0.0, 1.0, 2.0]


def test_operators_of_the_caller_are_left_alone():
    @torch.library.custom_op("tests_guest::callers", mutates_args=())
    def callers(x: torch.Tensor) -> torch.Tensor:
        return x + 5

    def uses_it():
        dist.init_process_group("gloo")
        sums_within = torch.library.Library("tests_guest", "FRAGMENT")  # beside it, in its namespace
        sums_within.define("other(Tensor x) -> Tensor")
        return callers(torch.zeros(1)).item()

    assert Cluster(2).run(guest(uses_it)) == [5.0, 5.0]
    assert torch.ops.tests_guest.callers(torch.ones(1)).item() == 6.0
    assert not hasattr(torch.ops.tests_guest, "other")


def defines_by_functions():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.library.define("tests_guest_named::times_rank", "(Tensor x) -> Tensor")
    torch.library.impl("tests_guest_named::times_rank", "cpu", lambda x: x * rank)
    dist.barrier()
    return torch.ops.tests_guest_named.times_rank(torch.ones(1)).item()


def test_the_functions_of_torch_library_are_heard_too():
    for _ in range(2):
        assert Cluster(3).run(guest(defines_by_functions)) == [0.0, 1.0, 2.0]


def imports_a_library():
    """Modules of libraries are run by the device that needs them first, and never again."""
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        file = Path(torch.__file__).parents[1] / "a_library.py"
        source = "double = torch.library.custom_op('tests_guest_installed::double', double, mutates_args=())"
        exec(compile(source, file, "exec"), {"torch": torch, "double": double})
    dist.barrier()
    return torch.ops.tests_guest_installed.double(torch.ones(1)).item()


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_operators_of_libraries_are_there_for_all_and_stay():
    assert Cluster(2).run(guest(imports_a_library)) == [2.0, 2.0]
    assert torch.ops.tests_guest_installed.double(torch.ones(1)).item() == 2.0
