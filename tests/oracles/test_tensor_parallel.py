"""A layer of a transformer against PyTorch's own tensor and sequence parallelism, run by real processes.

PyTorch's layer is dense code, with q, k and v apart and an attention of its own; `parallelize_module` splits it.
"""

import pytest
import torch
import torch.distributed as dist
from parallel.variants import variant
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F

from lib import ParallelBlock, ParallelMLP, dense_state, load_dense, shard
from lib.devices import Cluster
from lib.parallel.sequence.layers import SequenceLayerNorm

HEADS, HEAD_SIZE = 12, 2
HIDDEN = HEADS * HEAD_SIZE
SHAPE = (12, 12, HIDDEN)  # heads, batch and sequence divide by 1, 2, 3, 4
LAYOUTS = [(2, 12), (2, 2), (2, 1), (3, 12), (3, 1), (4, 2)]  # devices, heads of keys: split, shared by all, by some
# In turn with and without sequence parallelism: each size meets both, and so do heads that are split, and shared ones.
BLOCKS = [(size, kv, 1 - number % 2 or None) for number, (size, kv) in enumerate(LAYOUTS)]


class MLP(nn.Module):
    def __init__(self, inner, approximate):
        super().__init__()
        self.up, self.down, self.approximate = nn.Linear(HIDDEN, inner), nn.Linear(inner, HIDDEN), approximate

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


class Attention(nn.Module):
    def __init__(self, kv_heads):
        super().__init__()
        self.kv_heads = kv_heads
        self.q, self.out = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.k, self.v = nn.Linear(HIDDEN, kv_heads * HEAD_SIZE), nn.Linear(HIDDEN, kv_heads * HEAD_SIZE)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, HEAD_SIZE)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, kv_heads, approximate):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.attention, self.mlp = Attention(kv_heads), MLP(4 * HIDDEN, approximate)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class NormAndMLP(nn.Module):
    def __init__(self, norm, mlp):
        super().__init__()
        self.norm, self.mlp = norm, mlp

    def forward(self, x):
        return self.mlp(self.norm(x))


def split_mlp(mlp, mesh, outside):
    plan = {"up": ColwiseParallel(input_layouts=outside), "down": RowwiseParallel(output_layouts=outside)}
    parallelize_module(mlp, mesh, plan)


def split_attention(attention, mesh, outside):
    plan = {
        "": PrepareModuleInput(input_layouts=outside, desired_input_layouts=Replicate()),
        "q": ColwiseParallel(),
        "out": RowwiseParallel(output_layouts=outside),
    }
    if attention.kv_heads % mesh.size() == 0:
        plan |= {"k": ColwiseParallel(), "v": ColwiseParallel()}
    else:  # every rank computes all heads of keys and values, and goes on with one of them
        for layer in (attention.k, attention.v):
            distribute_module(
                layer,
                mesh,
                output_fn=lambda _, y, __: own_head(y.to_local(grad_placements=[Partial()]), -1, attention.kv_heads),
            )
    parallelize_module(attention, mesh, plan)


def own_head(y, dim, kv_heads):
    return y.chunk(kv_heads, dim)[dist.get_rank() * kv_heads // dist.get_world_size()]


def of_pytorch(model, x, upstream, sequence_dim):
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh, outside = init_device_mesh("cpu", (size,)), Replicate()
    if sequence_dim is not None:
        outside = Shard(sequence_dim)
        x, upstream = (y.chunk(size, sequence_dim)[rank] for y in (x, upstream))
        norms = [name for name, layer in model.named_children() if isinstance(layer, nn.LayerNorm)]
        parallelize_module(model, mesh, {name: SequenceParallel(sequence_dim=sequence_dim) for name in norms})
    split_mlp(model.mlp, mesh, outside)
    if not hasattr(model, "attention"):
        return results(model, x, upstream)
    split_attention(model.attention, mesh, outside)
    found, kv_heads = results(model, x, upstream), model.attention.kv_heads
    if kv_heads % size:
        shared = [name for name in found if name.startswith(("attention.k.", "attention.v."))]
        found |= {name: own_head(found[name], 0, kv_heads) for name in shared}
    return fused(found)


def of_ours(group, build, state, x, upstream, sequence_dim):
    model = build(group).double()
    load_dense(model, state, group)
    if sequence_dim is not None:
        x, upstream = (shard(y, group, sequence_dim) for y in (x, upstream))
    return results(model, x, upstream), model


def results(model, x, upstream):
    """The output, and the gradients of the input and of all parameters, as this rank holds them."""
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(upstream)
    return {"output": y.detach(), "input": x.grad, **{name: held(p) for name, p in model.named_parameters()}}


def held(p):
    """The gradient of a parameter, placed as the parameter is."""
    return p.grad.redistribute(placements=p.placements).to_local() if isinstance(p.grad, DTensor) else p.grad


def fused(named):
    """With q, k and v in one, as our layer has them."""
    rest, one = dict(named), {}
    for kind in ("weight", "bias"):
        one[f"attention.qkv.{kind}"] = torch.cat([rest.pop(f"attention.{name}.{kind}") for name in "qkv"])
    return rest | one


def check_equal(world, model, build, sequence_dim):
    torch.manual_seed(world.size)
    for p in model.double().parameters():
        nn.init.normal_(p, std=0.3)  # also where PyTorch starts at 0 or 1, which would hide what is left out
    x, upstream = torch.randn(2, *SHAPE, dtype=torch.float64)
    real = world.run(of_pytorch, model, x, upstream, sequence_dim)
    state = fused(model.state_dict()) if hasattr(model, "attention") else model.state_dict()
    simulated, models = zip(*Cluster(world.size).run(of_ours, build, state, x, upstream, sequence_dim), strict=True)
    for rank, (ours, theirs) in enumerate(zip(simulated, real, strict=True)):
        assert ours.keys() == theirs.keys()
        for name, expected in theirs.items():
            assert ours[name].shape == expected.shape, (rank, name)
            assert torch.allclose(ours[name], expected, rtol=0, atol=1e-12), (rank, name)
    whole = dense_state(models)
    assert whole.keys() == state.keys()
    assert all(torch.equal(whole[name], state[name]) for name in state)


@pytest.mark.parametrize(("approximate", "sequence_dim"), [("none", 1), ("tanh", None)], ids=["TP+SP", "tanh, TP"])
def test_layer_norm_and_mlp(world, approximate, sequence_dim):
    def build(group):
        mlp = variant(ParallelMLP, sequence_dim)(HIDDEN, group, inner=36, approximate=approximate)
        return NormAndMLP(nn.LayerNorm(HIDDEN) if sequence_dim is None else SequenceLayerNorm(HIDDEN, group), mlp)

    check_equal(world, NormAndMLP(nn.LayerNorm(HIDDEN), MLP(36, approximate)), build, sequence_dim)


@pytest.mark.parametrize(("size", "kv_heads", "sequence_dim"), BLOCKS)
def test_block(worlds, size, kv_heads, sequence_dim):
    def build(group):
        return variant(ParallelBlock, sequence_dim)(HIDDEN, HEADS, group, kv_heads, approximate="tanh")

    check_equal(worlds[size], Block(kv_heads, "tanh"), build, sequence_dim)
