"""Embedding and loss over a split vocabulary against `RowwiseParallel` and `loss_parallel`, run by real processes."""

import pytest
import torch
import torch.distributed as dist
from parallel.variants import variant
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module
from torch.nn import functional as F

from lib import (
    VocabParallelEmbedding,
    copy_to,
    gather_linear,
    load_dense,
    vocab_parallel_cross_entropy,
)
from lib.devices import Cluster

HIDDEN, BATCH, SEQUENCE = 6, 2, 12


class Ends(nn.Module):
    """Tokens in, logits out, with one weight for both ends."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, HIDDEN, dtype=torch.float64)
        self.head = nn.Linear(HIDDEN, vocabulary, bias=False, dtype=torch.float64)


def of_pytorch(model, tokens, targets, upstream, sequence_dim):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    outside = Replicate() if sequence_dim is None else Shard(sequence_dim)
    plan = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=outside),
        "head": ColwiseParallel(input_layouts=outside, use_local_output=False),
    }
    parallelize_module(model, mesh, plan)
    model.head.weight = model.embedding.weight
    x = model.embedding(tokens)
    x.retain_grad()
    with loss_parallel():
        logits = model.head(x.sin())  # the sine stands for all layers between the two ends
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").to_local()
        loss.backward(upstream.flatten())
    return x.detach(), x.grad, loss.detach().view_as(targets), model.embedding.weight.grad.to_local()


def of_ours(group, state, tokens, targets, upstream, sequence_dim):
    vocabulary = len(state["weight"])
    embedding = variant(VocabParallelEmbedding, sequence_dim)(vocabulary, HIDDEN, group).double()
    load_dense(embedding, state, group)
    x = embedding(tokens)
    x.retain_grad()
    if sequence_dim is None:
        logits = F.linear(copy_to(x.sin(), group), embedding.weight)
    else:
        logits = gather_linear(x.sin(), embedding.weight, None, group, sequence_dim)
    loss = vocab_parallel_cross_entropy(logits, targets, group, vocabulary)
    loss.backward(upstream)
    return x.detach(), x.grad, loss.detach(), embedding.weight.grad


@pytest.mark.parametrize("sequence_dim", [None, 1], ids=["TP", "TP+SP"])
@pytest.mark.parametrize("vocabulary", [24, 10], ids=["24 tokens", "10 tokens"])
def test_embedding_and_loss_of_tied_weights(world, vocabulary, sequence_dim):
    model = Ends(vocabulary)
    tokens, targets = torch.randint(vocabulary, (2, BATCH, SEQUENCE))
    upstream = torch.randn(BATCH, SEQUENCE, dtype=torch.float64)
    real = world.run(of_pytorch, model, tokens, targets, upstream, sequence_dim)
    state = model.embedding.state_dict()
    simulated = Cluster(world.size).run(of_ours, state, tokens, targets, upstream, sequence_dim)
    rows = -(-vocabulary // world.size)  # PyTorch leaves out the padding
    for (*ours, d_weight), (*theirs, their_d_weight) in zip(simulated, real, strict=True):
        assert d_weight.shape == (rows, HIDDEN)
        mine, padding = d_weight.split([len(their_d_weight), rows - len(their_d_weight)])
        assert not padding.any()
        for a, b in zip([*ours, mine], [*theirs, their_d_weight], strict=True):
            assert a.shape == b.shape
            assert torch.allclose(a, b, rtol=0, atol=1e-12)
