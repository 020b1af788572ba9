"""What is remembered of an operation is what PyTorch says: for each, it is asked twice, and compared with the first."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib.devices import Cluster, Hardware, Link
from lib.devices.engine.known_shapes import KnownShapes

TOY = Hardware("toy", 1e12, 1e12, 1e12, Link(0.0, 1e12))


class Asked(TorchDispatchMode):
    """Names of the operations that PyTorch was asked in earnest."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.empty_strided.default:  # how a known result is made
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Remembers(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.shapes = KnownShapes()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.shapes.result(func, args, kwargs or {})


def meta(*size, dtype=torch.float32):
    return torch.empty(size, dtype=dtype, device="meta")


def described(out):
    """All that a program can see of tensors without numbers."""
    several = out if isinstance(out, tuple | list) else [out]
    return [
        (type(x), x.shape, x.stride(), x.dtype, x.storage_offset(), x.untyped_storage().nbytes(), x.is_meta)
        for x in several
    ]


OPERATIONS = {
    "sum of unlike": lambda: meta(4, 1) + meta(3),
    "turned": lambda: meta(3, 4).T * 2.0,
    "not turned": lambda: meta(4, 3) * 2.0,
    "whole times whole": lambda: meta(3, dtype=torch.int64) * 2,
    "whole times fraction": lambda: meta(3, dtype=torch.int64) * 2.0,
    "whole times truth": lambda: meta(3, dtype=torch.int64) * True,
    "product": lambda: meta(3, 4).bfloat16() @ meta(4, 5).bfloat16(),
    "the same product of other numbers": lambda: meta(3, 4) @ meta(4, 5),
    "several results": lambda: torch.var_mean(meta(3, 4), 1),
    "one of one": lambda: torch.split(meta(3, 4), 3),
    "view": lambda: meta(3, 4).view(12),
    "piece": lambda: meta(5, 4)[1:3],
    "same memory": lambda: meta(3, 4).reshape(12)[2:],
    "along dim 0": lambda: meta(3, 4).sum(0),
    "along dim 1": lambda: meta(3, 4).sum(1),
    "joined": lambda: torch.cat([meta(3, 4), meta(2, 4)]),
    "joined along 1": lambda: torch.cat([meta(3, 4), meta(3, 2)], 1),
    "half": lambda: meta(3, 4).to(dtype=torch.float16),
    "in place": lambda: meta(3, 4).add_(meta(4)),
    "into another": lambda: torch.add(meta(3, 4), meta(4), out=meta(3, 4)),
    "larger": lambda: meta(3).resize_(7),
    "turned in place": lambda: meta(3, 4).t_(),
    "parameter": lambda: nn.Parameter(meta(3, 4)).detach() + 1,
    "nothing in it": lambda: meta(0, 4) * 2,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_second_answer_is_the_first(name):
    right = described(OPERATIONS[name]())
    with Remembers():
        assert described(OPERATIONS[name]()) == right
        assert described(OPERATIONS[name]()) == right


def test_all_operations_of_one_run_are_kept_apart():
    right = {name: described(make()) for name, make in OPERATIONS.items()}
    with Remembers():
        for _ in range(2):
            assert {name: described(make()) for name, make in OPERATIONS.items()} == right


def test_pytorch_is_asked_once():
    x, y = meta(3, 4), meta(3, 4)
    with Asked() as asked, Remembers():
        for _ in range(3):
            x + y
            x.mul_(y)
            torch.add(x, y, out=y)
            y + x
    assert asked.names == ["add", "mul_", "add"]


def test_what_is_written_to_is_what_comes_back():
    x, y, other = meta(3, 4), meta(3, 4), meta(3, 4)
    with Remembers():
        x.add_(1), torch.add(x, x, out=y)
        version = other._version
        assert other.add_(1) is other
        assert other._version == version + 1
    shapes = KnownShapes()
    for _ in range(2):
        assert shapes.result(torch.ops.aten.add.out, (x, y), {"out": other}) is other


def test_a_view_shares_the_memory_of_what_it_is_a_view_of():
    with Remembers():
        for _ in range(2):
            x = meta(3, 4)
            memories = {y.untyped_storage()._cdata for y in (x, x.view(12), x[1], x.reshape(4, 3))}
            assert len(memories) == 1
            assert x.clone().untyped_storage()._cdata not in memories


def test_a_piece_of_its_own_memory_stays_a_piece():
    with torch.library._scoped_library("known_shapes", "FRAGMENT") as some:
        some.define("second_half(Tensor x) -> Tensor")
        some.impl("second_half", lambda x: x.new_empty(2 * len(x))[len(x) :], "Meta")
        with Remembers():
            for _ in range(2):
                half = torch.ops.known_shapes.second_half(meta(3))
                assert (half.storage_offset(), half.untyped_storage().nbytes()) == (3, 24)


def test_what_is_sparse_stays_sparse():
    x = torch.empty(3, 3, layout=torch.sparse_coo, device="meta")
    with Remembers():
        for _ in range(2):
            assert x.clone().layout == torch.sparse_coo


def test_a_joining_counts_what_it_is_given():
    """Tensors in lists are memory that is read, too."""
    cluster = Cluster(1, hardware=TOY)
    cluster.run(lambda group: torch.cat([meta(2, 4), meta(3, 4)]))
    (event,) = (event for event in cluster.trace.events if event.name == "cat")
    assert event.moved == 2 * 4 * 5 * 4


def test_the_default_dtype_may_change():
    x = meta(3, dtype=torch.int64)
    with Remembers():
        assert (x / 2).dtype == (x / 2).dtype == torch.float32
        torch.set_default_dtype(torch.float64)
        try:
            assert (x / 2).dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)


def test_numbers_are_computed():
    x = torch.arange(3.0)
    with Remembers():
        for _ in range(2):
            assert (meta(3) + meta(3)).is_meta
            assert (x + x).tolist() == [0, 2, 4]
        assert (x * x + x).tolist() == [0, 2, 6]


def test_a_shape_that_does_not_fit_is_refused_each_time():
    with Remembers():
        for _ in range(2):
            with pytest.raises(RuntimeError):
                meta(3) + meta(4)


def test_a_run_asks_once_for_all_its_devices_and_layers(monkeypatch):
    asked = []
    real = KnownShapes.ask
    monkeypatch.setattr(KnownShapes, "ask", lambda self, func, *rest: asked.append(func) or real(self, func, *rest))

    def program(group):
        x = meta(3, 4)
        for _ in range(5):
            x = torch.nn.functional.gelu(x)

    cluster = Cluster(3, hardware=TOY)
    cluster.run(program)
    assert sum(event.name == "gelu" for event in cluster.trace.events) == 15
    assert asked.count(torch.ops.aten.gelu.default) == 1
