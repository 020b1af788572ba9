"""What the caller has set for PyTorch holds on every device, although PyTorch keeps it per thread."""

import contextvars
import ctypes
from pathlib import Path

import pytest
import torch

from lib.devices import Cluster


def everywhere(look):
    """What `look()` sees on each of three devices, before and after they waited; all must see the same."""

    def program(group):
        first = look()
        group.barrier()
        return first, look()

    outputs = Cluster(3).run(program)
    assert all(pair == (outputs[0][0], outputs[0][0]) for pair in outputs), outputs
    return outputs[0][0]


@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode(enabled):
    with torch.set_grad_enabled(enabled):
        assert everywhere(torch.is_grad_enabled) is enabled
        assert everywhere(lambda: (torch.ones(1, requires_grad=True) * 2).requires_grad) is enabled
        assert torch.is_grad_enabled() is enabled


@pytest.mark.parametrize("enabled", [True, False])
def test_inference_mode(enabled):
    with torch.inference_mode(enabled):
        assert everywhere(torch.is_inference_mode_enabled) is enabled
        assert everywhere(lambda: torch.ones(1).is_inference()) is enabled
        assert everywhere(torch.is_grad_enabled) is not enabled


def test_no_grad_inside_of_inference_mode_false():
    with torch.no_grad(), torch.inference_mode(False):
        assert everywhere(torch.is_grad_enabled) is torch.is_grad_enabled()


def test_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        assert everywhere(lambda: torch.ones(1).dtype) == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype, cache_enabled=False):
        assert everywhere(lambda: (x @ x).dtype) == dtype
        assert everywhere(torch.is_autocast_cache_enabled) is False
    with torch.autocast("cpu", dtype):
        assert everywhere(torch.is_autocast_cache_enabled) is True
    with torch.autocast("cpu", dtype), torch.autocast("cpu", enabled=False):
        assert everywhere(lambda: (x @ x).dtype) == torch.float32
    assert everywhere(lambda: (x @ x).dtype) == torch.float32


def test_default_device():
    with torch.device("meta"):
        assert everywhere(lambda: torch.ones(1).device.type) == "meta"
    assert everywhere(lambda: torch.ones(1).device.type) == "cpu"


def test_number_of_threads():
    before = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert everywhere(threads_of_openmp) == number
    finally:
        torch.set_num_threads(before)


def threads_of_openmp():
    """How many threads the next operation of this thread would use. Not asked of PyTorch: asking it sets it right."""
    library = next(Path(torch.__file__).parent.glob("lib/lib*omp*"))
    return ctypes.CDLL(str(library)).omp_get_max_threads()


def test_context_variables():
    variable = contextvars.ContextVar("variable", default="unset")
    token = variable.set("set by the caller")

    def program(group):
        before = variable.get()
        variable.set(group.rank)
        group.barrier()
        return before, variable.get()

    try:
        assert Cluster(3).run(program) == [("set by the caller", rank) for rank in range(3)]
        assert variable.get() == "set by the caller"
    finally:
        variable.reset(token)


def test_a_device_changes_modes_for_itself_alone():
    def program(group):
        with torch.set_grad_enabled(group.rank == 1):
            group.barrier()
            return torch.is_grad_enabled()

    assert Cluster(3).run(program) == [False, True, False]
    assert torch.is_grad_enabled()
