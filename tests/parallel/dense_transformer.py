"""One layer of a transformer on one device, in plain PyTorch, and how the parallel one is compared with it."""

from dataclasses import dataclass

import pytest
import torch
from devices import messages
from torch import Tensor, nn
from torch.nn import functional as F

from lib import Replicate, Shard, load_dense, shard
from lib.devices import Cluster
from lib.parallel.sharding.dense import layout_of

HIDDEN, HEADS, DEVICES = 24, 12, [1, 2, 3, 4, 6, 12]
BATCH, LENGTH = 2, 7  # a length that hardly any number of devices divides, and below the largest


@pytest.fixture(autouse=True)
def double():
    """Float64, the same numbers in every run, and one thread: for products this small a team only costs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


class DenseMLP(nn.Module):
    def __init__(self, hidden=HIDDEN, inner=4 * HIDDEN, approximate="none"):
        super().__init__()
        self.up, self.down, self.approximate = nn.Linear(hidden, inner), nn.Linear(inner, hidden), approximate

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


class DenseAttention(nn.Module):
    def __init__(self, hidden=HIDDEN, heads=HEADS, kv_heads=HEADS, causal=True):
        super().__init__()
        self.size, self.widths, self.causal = hidden // heads, [hidden] + 2 * [kv_heads * hidden // heads], causal
        self.qkv, self.out = nn.Linear(hidden, sum(self.widths)), nn.Linear(hidden, hidden)

    def forward(self, x):
        q, k, v = (
            y.unflatten(-1, (-1, self.size)).transpose(1, 2) for y in self.qkv(x).split(self.widths, -1)
        )  # (batch, heads, S, d)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


class DenseBlock(nn.Module):
    def __init__(self, hidden=HIDDEN, heads=HEADS, kv_heads=HEADS, approximate="none"):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(hidden), DenseAttention(hidden, heads, kv_heads)
        self.norm2, self.mlp = nn.LayerNorm(hidden), DenseMLP(hidden, 4 * hidden, approximate)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@dataclass
class Step:
    """The output of a module, and the gradients of its input and of its parameters."""

    y: Tensor
    x_grad: Tensor
    grads: dict[str, Tensor]


def step(module, x, upstream):
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(upstream)
    return Step(y.detach(), x.grad, {name: p.grad for name, p in module.named_parameters()})


def assert_close(mine, expected, what, tolerance=1e-12):
    assert mine.shape == expected.shape, what
    assert mine.dtype == expected.dtype, what
    if mine.numel():
        worst = float((mine - expected).detach().abs().max())
        assert worst <= tolerance * max(1.0, float(expected.detach().abs().max())), (what, worst)


def shake(module):
    """Random numbers in every parameter: an initial 1 or 0 would hide a forgotten or misplaced one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def assert_equals_dense(size, make, dense, x, sequence_dim=None, tolerance=1e-12):
    """`make(group)`, with the weights of `dense`, gives on each device its piece of the dense output and of every
    gradient. Returns the cluster."""
    shake(dense).zero_grad()
    upstream = torch.randn_like(x)
    expected = step(dense, x, upstream)
    placement = Replicate() if sequence_dim is None else Shard(sequence_dim)

    def program(group):
        module = make(group)
        load_dense(module, dense.state_dict(), group)
        pieces = [t if sequence_dim is None else shard(t, group, sequence_dim) for t in (x, upstream)]
        return module, step(module, *pieces)

    cluster = Cluster(size)
    for rank, (module, mine) in enumerate(cluster.run(program)):
        assert_close(mine.y, placement.piece(expected.y, size, rank), f"output on rank {rank}", tolerance)
        assert_close(mine.x_grad, placement.piece(expected.x_grad, size, rank), f"input's on rank {rank}", tolerance)
        assert mine.grads.keys() == expected.grads.keys()
        for name, grad in expected.grads.items():
            piece = layout_of(module, name).piece(grad, size, rank)
            assert_close(mine.grads[name], piece, f"{name}'s on rank {rank}", tolerance)
    return cluster


def charged(cluster):
    """{verb: (calls, bytes sent)} of each device; it must be the same for all."""
    verbs = cluster.meters.verbs()
    counts = [
        {verb: (count.calls, count.bytes_sent) for verb in verbs if (count := cluster.meters.count(rank, verb)).calls}
        for rank in range(cluster.size)
    ]
    assert all(count == counts[0] for count in counts)
    return counts[0]


def forward_and_backward(size, run):
    """What `run(group)`, which returns a tensor, is charged: in the forward, and in the backward of its sum."""
    forward, both = Cluster(size), Cluster(size)
    forward.run(lambda group: run(group).detach())
    both.run(lambda group: run(group).sum().backward())
    first, total = charged(forward), charged(both)
    more = {verb: tuple(b - a for a, b in zip(first.get(verb, (0, 0)), total[verb], strict=True)) for verb in total}
    return first, {verb: count for verb, count in more.items() if any(count)}


def refuses(fragments, program, size=4, error_type=ValueError):
    """`program` must fail with a message in which all fragments are found, before anything is sent."""
    cluster = Cluster(size)
    with messages.says(error_type, *fragments):
        cluster.run(program)
    assert cluster.meters.rows() == [], "refused, but only after something was sent"
