"""The all-reduce of the backward beside a product: equal values, equal bytes, equal memory, less time."""

import pytest
import torch

from lib import (
    Cluster,
    GPTConfig,
    OverlappedBlock,
    OverlappedColumnLinear,
    OverlappedGPT,
    OverlappedMLP,
    ParallelBlock,
    ParallelMLP,
    copy_to,
    equal_to_one_device,
    measure,
    overlapped_linear,
)

X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))
CONFIG = GPTConfig(layers=2, hidden=8, heads=4, vocabulary=11, positions=6)
MAKE = {
    "linear": lambda group: OverlappedColumnLinear(8, 12, group, gather_output=True),
    "MLP": lambda group: OverlappedMLP(8, group),
    "block": lambda group: OverlappedBlock(8, 4, group),
    "shared keys": lambda group: OverlappedBlock(8, 4, group, 2),
}


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("kind", MAKE)
def test_equal_to_one_device(kind, devices):
    found = equal_to_one_device(MAKE[kind], X, devices=devices)
    assert found, str(found)


def test_a_gpt():
    tokens = torch.randint(11, (2, 6))
    found = equal_to_one_device(lambda group: OverlappedGPT(CONFIG, group), tokens, tokens, devices=4)
    assert found, str(found)


def gradients(group, overlapped, wanted):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 8), torch.randn(5, 8), torch.randn(5)
    for name, leaf in (("x", x), ("weight", weight), ("bias", bias)):
        leaf.requires_grad_(name in wanted)
    if overlapped:
        y = overlapped_linear(x, weight, bias, group)
    else:
        y = torch.nn.functional.linear(copy_to(x, group), weight, bias)
    y.square().sum().backward()
    return [y.detach(), *(leaf.grad for leaf in (x, weight, bias))]


@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("bias",), ("x", "bias"), ("x", "weight", "bias")])
def test_the_same_bits_whatever_is_frozen(wanted):
    plain, beside = (Cluster(3).run(gradients, overlapped, wanted) for overlapped in (False, True))
    for one, other in zip(plain, beside, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


@pytest.mark.parametrize(
    ("plain", "beside"),
    [
        (lambda g: ParallelMLP(16, g), lambda g: OverlappedMLP(16, g)),
        (lambda g: ParallelBlock(16, 4, g, dropout=0.1), lambda g: OverlappedBlock(16, 4, g, dropout=0.1)),
    ],
)
def test_the_same_bytes_work_and_memory(plain, beside):
    one, other = (measure(make, (2, 8, 16), devices=4) for make in (plain, beside))
    assert one.forward == other.forward
    assert one.backward == other.backward
    assert one.activations == other.activations


def test_under_autocast():
    def program(group):
        layer = OverlappedColumnLinear(8, 12, group)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(X)
        y.float().square().sum().backward()
        return y.dtype, layer.weight.grad.dtype

    assert Cluster(2).run(program) == [(torch.bfloat16, torch.float32)] * 2


def seconds(make, steps=1):
    """Of forward and backward of the layer of GPT-3, on the clock of 8 H100s, without the initialization."""

    def program(group, steps):
        with torch.device("meta"):
            layer = make(group).bfloat16()
            x = torch.empty(1, 2048, 12288, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(steps):
                y = layer(x)
                y.backward(torch.empty_like(y))

    found = []
    for count in (0, steps):
        cluster = Cluster(8, hardware="H100")
        cluster.run(program, count)
        found.append(cluster.trace.seconds)
    return found[1] - found[0]


@pytest.mark.parametrize(
    ("plain", "beside", "regions"),
    [
        (lambda g: ParallelMLP(12288, g), lambda g: OverlappedMLP(12288, g), 1),
        (lambda g: ParallelBlock(12288, 96, g), lambda g: OverlappedBlock(12288, 96, g), 2),
    ],
    ids=["MLP", "layer"],
)
def test_on_the_clock_of_the_backward_nothing_is_left_but_the_products(plain, beside, regions):
    x = torch.empty(1, 2048, 12288, dtype=torch.bfloat16, device="meta")
    reduce = Cluster(8, hardware="H100")
    reduce.run(lambda group: group.all_reduce(x))
    hidden = seconds(plain) - seconds(beside)
    assert hidden == pytest.approx(regions * reduce.trace.seconds, rel=0.02)
