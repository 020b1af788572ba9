"""The formulas of context parallelism against the meters, the clock and what autograd keeps, and a published run."""

from dataclasses import replace

import pytest
import torch
from devices.messages import says
from torch import nn

from lib import GatheredAttention, Hardware, Link, RingAttention, UlyssesAttention
from lib.costs.context import (
    attention_bytes,
    attention_flops,
    attention_seconds,
    context_memory,
    cut_heads,
    cut_imbalance,
    layer_flops,
    pairs_by_hop,
    tokens_to_hide,
)
from lib.costs.memory import TrainingPlan, layer_activations
from lib.costs.saved_tensors import watch_saved
from lib.costs.shapes import ModelShape
from lib.devices import Cluster

SMALL = ModelShape.llama(2, 128, 8, 4, 256, 1000)  # 8 heads of 16
WAYS = {"ring": RingAttention, "gathered": GatheredAttention, "Ulysses": UlyssesAttention}
TOY = Hardware("toy", flops=1e12, memory_bandwidth=1e30, memory=1e30, inside=Link(0.0, 1e9))  # memory costs nothing


def run(shape, tokens, devices, way, hardware=None, backward=True, order=None):
    """The cluster after one layer's attention, in bfloat16 without data."""

    def program(group):
        n = tokens // devices
        q = torch.empty(1, shape.heads, n, shape.head_size, dtype=torch.bfloat16, device="meta", requires_grad=True)
        k, v = torch.empty(2, 1, shape.kv_heads, n, shape.head_size, dtype=torch.bfloat16, device="meta")
        ordered = order or ("contiguous" if way == "Ulysses" else "zigzag")
        y = WAYS[way](group, tokens, ordered)(q, k.requires_grad_(), v.requires_grad_())
        if backward:
            y.sum().backward()

    cluster = Cluster(devices, hardware=hardware)
    cluster.run(program)
    return cluster


def bytes_sent(cluster):
    return sum(cluster.meters.count(0, verb).bytes_sent for verb in cluster.meters.verbs())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_bytes_are_what_the_meters_count(way, devices):
    forward, backward = attention_bytes(SMALL, 64, devices, way)
    assert bytes_sent(run(SMALL, 64, devices, way, backward=False)) == forward
    assert bytes_sent(run(SMALL, 64, devices, way)) == forward + backward


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bandwidth", [1e7, 1e9, 1e12])
@pytest.mark.parametrize("devices", [1, 4])
def test_seconds_are_those_of_the_clock(way, bandwidth, devices):
    hardware = replace(TOY, inside=Link(0.0, bandwidth))
    expected = attention_seconds(SMALL, 4096, devices, way, hardware, hardware.inside)
    found = run(SMALL, 4096, devices, way, hardware, backward=False).trace
    assert found.seconds == pytest.approx(expected.total, rel=2e-3)
    assert found.total(0, "compute") == pytest.approx(expected.compute, rel=2e-3)
    assert found.flops(0) == pytest.approx(attention_flops(SMALL, 4096, devices), rel=2e-3)


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_from_so_many_tokens_on_the_ring_hides(kv_heads):
    """On either side of the inequality, on the clock."""
    shape, devices = replace(SMALL, kv_heads=kv_heads), 4
    least = tokens_to_hide(TOY, TOY.inside, shape)
    assert least == 2 * kv_heads / 8 * 1e12 / 1e9

    def shows(n):
        trace = run(shape, n * devices, devices, "ring", TOY, backward=False).trace
        return trace.seconds / trace.total(0, "compute") - 1

    assert shows(int(least * 1.05) // 2 * 2) < 1e-3
    assert shows(int(least * 0.5) // 2 * 2) == pytest.approx(3 / 4, rel=0.02), "3 of 4 blocks wait twice their time"


def test_neither_the_head_size_nor_tensor_parallelism_matters_to_what_hides():
    llama = ModelShape.preset("llama-3-70b")
    H100 = Hardware.preset("H100")
    least = tokens_to_hide(H100, H100.between, llama)
    assert least == tokens_to_hide(H100, H100.between, cut_heads(llama, 8))
    assert tokens_to_hide(H100, H100.between, llama, causal=False) == least / 2


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_how_unbalanced_each_cut_is(devices):
    S, P = 4096, devices
    n = S // P
    contiguous = ((P - 1) * n * n + n * (n + 1) / 2) * P / (S * (S + 1) / 2)
    assert cut_imbalance(S, P, "contiguous") == pytest.approx(contiguous)
    assert cut_imbalance(S, P, "contiguous") == pytest.approx((2 * P - 1) / P, rel=1e-2)
    assert cut_imbalance(S, P, "zigzag") == 1
    assert cut_imbalance(S, P, "striped") == pytest.approx(1, abs=2 * P / S)
    assert cut_imbalance(S, P, "contiguous", causal=False) == 1


@pytest.mark.parametrize("order", ["contiguous", "striped", "zigzag"])
def test_all_hops_together_are_the_triangle(order):
    table = pairs_by_hop(37, 5, order)
    assert sum(map(sum, table)) == 37 * 38 // 2


def test_the_work_of_a_hop_on_8_devices():
    """Contiguous, busiest by mean: from hop to hop fewer devices have anything to do."""
    columns = list(zip(*pairs_by_hop(64 * 8, 8, "contiguous"), strict=True))
    assert [round(max(c) / (sum(c) / 8), 2) for c in columns] == [1, 1.14, 1.33, 1.6, 2, 2.67, 4, 8]
    for column in zip(*pairs_by_hop(64 * 8, 8, "zigzag"), strict=True):
        assert len(set(column)) == 1


@pytest.mark.parametrize("way", WAYS)
def test_memory_is_what_autograd_keeps(way):
    devices, tokens = 4, 64

    class Layer(nn.Module):
        def __init__(self, group):
            super().__init__()
            self.attention = WAYS[way](group, tokens, "contiguous")

        def forward(self, q, k, v):
            return self.attention(q, k, v)

    def program(group):
        layer, n = Layer(group), tokens // devices
        q = torch.randn(1, 8, n, 16, dtype=torch.bfloat16, requires_grad=True)
        k, v = (torch.randn(1, 4, n, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        with watch_saved(layer) as kept:
            y = layer(q, k, v)
            found = sum(block.size for block in kept())
        del y
        return found

    shape, found = replace(SMALL, layers=1), Cluster(devices).run(program)[0]
    layer = layer_activations(shape, TrainingPlan(sequence=tokens // devices))
    own = sum(layer[name] for name in ("queries, keys, values", "attention's output", "scores"))
    memory = context_memory(shape, tokens, devices, way)
    assert memory["queries, keys, values"] == own
    kept_of_others = memory["visiting keys"] if way == "gathered" else 0  # a ring lets them go
    assert found == own + kept_of_others


def test_memory_shrinks_with_the_devices():
    shape = ModelShape.preset("llama-3-8b")
    one, eight = (context_memory(shape, 2**17, devices) for devices in (1, 8))
    assert one.pop("visiting keys") == 0
    moving = eight.pop("visiting keys")
    assert moving == 2 * (2 * 2 * 8 * 128 * 2**14), "two pieces of keys and values under way"
    assert {name: size / 8 for name, size in one.items()} == eight
    less = context_memory(shape, 2**17, 8, keep_all=False)
    assert less["inputs of the layers"] == 32 * 2 * 4096 * 2**14
    assert sum(less.values()) < sum(eight.values())


def test_the_long_context_run_of_llama_3():
    """405B on 16,384 H100: 400 TFLOP/s per device at 8,192 tokens, 380 at 131,072 over 16 (Llama 3, table 4).

    Its tokens per device are the same. The gathers that show, forward and backward, explain most of the difference.
    """
    H100, shape = Hardware.preset("H100"), ModelShape.preset("llama-3-405b")
    local = cut_heads(shape, 8)
    assert (local.heads, local.kv_heads) == (16, 1)
    work = sum(layer_flops(shape, 131072, 16).values()) / 8
    exposed = 2 * attention_seconds(local, 131072, 16, "gathered", H100, H100.between).exposed
    compute = 3 * work / 400e12
    predicted = 400 * compute / (compute + exposed)
    assert 380 <= predicted <= 390
    ring = attention_seconds(local, 131072, 16, "ring", H100, H100.between)
    assert ring.exposed == 0, "a ring would hide them: 8,192 tokens per device are enough"
    assert tokens_to_hide(H100, H100.between, shape) < 8192


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("way='all' must be one of 'ring', 'gathered', 'Ulysses'", lambda: attention_bytes(SMALL, 64, 4, "all")),
        ("8 heads cannot be split over 16 devices", lambda: attention_bytes(SMALL, 64, 16, "Ulysses")),
        (
            "6 heads of keys and values cannot be laid out over 4 devices",
            lambda: attention_bytes(replace(SMALL, heads=12, kv_heads=6), 64, 4, "Ulysses"),
        ),
        ("tokens=0 must be an integer of at least 1", lambda: attention_bytes(SMALL, 0, 4, "ring")),
        ("devices=0 must be an integer of at least 1", lambda: context_memory(SMALL, 64, 0)),
        ("layer_flops: devices=0 must be", lambda: layer_flops(SMALL, 64, 0)),
        ("65 tokens cannot be cut evenly over 4 x 1 devices", lambda: context_memory(SMALL, 65, 4)),
        ("8 heads cannot be split over 3 devices", lambda: cut_heads(SMALL, 3)),
        (
            "6 heads of keys and values cannot be laid out over 4 devices",
            lambda: cut_heads(replace(SMALL, heads=12, kv_heads=6), 4),
        ),
    ],
)
def test_refused(words, call):
    with says(ValueError, words):
        call()


def test_packed_documents_are_balanced_when_each_is_cut():
    """The work of a token is its position in its document, so a cut of the whole sequence balances nothing."""
    lengths = (2048, 512, 1024, 256, 256)
    documents = torch.arange(5).repeat_interleave(torch.tensor(lengths))
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    for order, least, most in (("contiguous", 2, 4), ("zigzag", 1.4, 2), ("striped", 1, 1.01), (lengths, 1, 1.01)):
        work = pairs_by_hop(4096, 4, order, documents=documents)
        assert sum(map(sum, work)) == pairs
        assert least <= cut_imbalance(4096, 4, order, documents=documents) <= most
