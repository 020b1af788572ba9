"""Programs that use every layer and every training method of lib.parallel, forward and backward, at float64."""

from functools import partial

import torch
from oracles.real_verbs import every_verb
from parallel.small_model import make_batches
from parallel.variants import variant
from parallel.zero_training import train
from torch import nn
from torch.nn import functional as F

from lib import (
    ColumnParallelLinear,
    GatheredAttention,
    ParallelBlock,
    ParallelMLP,
    ParallelSelfAttention,
    RingAttention,
    RowParallelLinear,
    UlyssesAttention,
    VocabParallelEmbedding,
    average_gradients,
    averaging,
    broadcast_parameters,
    check_same_parameters,
    clip_gradients,
    gather_from,
    scatter_to,
    shard_batch,
    vocab_parallel_cross_entropy,
)
from lib.devices import Mesh
from lib.parallel.data.parameter_server import plan_updates, train_asynchronously
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.generate import generate
from lib.parallel.gpt.model import GPT

B, S, HIDDEN, HEADS, VOCABULARY = 2, 8, 16, 8, 37


def layer(make, group, sequence_dim=None):
    """Output, and the gradients of input and parameters; the input replicated, or cut along the sequence."""
    torch.manual_seed(5)
    module = make(group).double()
    x = torch.randn(B, S, HIDDEN, dtype=torch.float64, requires_grad=True)
    if sequence_dim is None:
        y = module(x)
    else:
        y = gather_from(module(scatter_to(x, group, sequence_dim)), group, sequence_dim)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


def vocabulary(group):
    torch.manual_seed(5)
    embed = VocabParallelEmbedding(VOCABULARY, HIDDEN, group).double()
    tokens = torch.randint(VOCABULARY, (B, S))
    hidden = embed(tokens)
    loss = vocab_parallel_cross_entropy(hidden @ embed.weight.mT, tokens.roll(-1, 1), group, VOCABULARY).mean()
    loss.backward()
    return loss.detach(), embed.weight.grad


def data_parallel(group, overlapped):
    """Three steps on uneven parts of the batch, from parameters that differ before the broadcast."""
    torch.manual_seed(group.rank)
    model = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 2)).double()
    broadcast_parameters(model, group)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    random = torch.Generator().manual_seed(1)
    for _ in range(3):
        batch = torch.randn(2 * group.size + 1, 6, generator=random, dtype=torch.float64)
        x = shard_batch(batch, group)
        optimizer.zero_grad()
        share = len(x) / len(batch)
        if overlapped:
            with averaging(model, group, share, bucket_bytes=200):
                model(x).square().mean().backward()
        else:
            model(x).square().mean().backward()
            average_gradients(model, group, share, bucket_bytes=200)
        norm = clip_gradients(model.parameters(), group, 0.5)
        optimizer.step()
    check_same_parameters(model, group)
    return norm, [p.detach() for p in model.parameters()]


def data_and_tensor_parallel(group):
    mesh = Mesh(group, dp=2, tp=group.size // 2)
    torch.manual_seed(0)
    block = variant(ParallelBlock, 1)(HIDDEN, HEADS, mesh.tp, dropout=0.1).double()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    batch = torch.randn(4, S, HIDDEN, dtype=torch.float64)
    for _ in range(2):
        optimizer.zero_grad()
        x = scatter_to(shard_batch(batch, mesh.dp), mesh.tp, 1)
        gather_from(block(x), mesh.tp, 1).square().mean().backward()
        average_gradients(block, mesh.dp)
        optimizer.step()
    return [p.detach() for p in block.parameters()]


def gpt(group, **options):
    """Two steps, data x tensor parallel, then a text that is drawn at random: the seed comes from rank 0."""
    mesh = Mesh(group, dp=2, tp=group.size // 2)
    model = make_gpt(mesh.tp, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        tokens = shard_batch(torch.randint(VOCABULARY, (4, S)), mesh.dp)
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:]) if not options else model(tokens, tokens.roll(-1, 1))
        loss.backward()
        average_gradients(model, mesh.dp)
        optimizer.step()
        losses.append(loss.detach())
    text = [] if options else [generate(model, tokens[:1, :3], 5, temperature=1.0, top_k=9)]
    return [*losses, *text, *(p.detach() for p in model.parameters())]


def make_gpt(group, sequence=False, **options):
    torch.manual_seed(2)
    config = GPTConfig(layers=2, hidden=HIDDEN, heads=HEADS, vocabulary=VOCABULARY, positions=S)
    return variant(GPT, sequence)(config, group, **options).double()


def zero(group, stage):
    return train(group, stage, "AdamW", make_batches([5, 9]), max_norm=0.1)


def asynchronous(group):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    x = torch.full((4, 3), float(group.rank), dtype=torch.float64)
    plan = plan_updates([1.0, 1.7, 2.3][: group.size - 1], 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return train_asynchronously(group, model, optimizer, lambda model: F.mse_loss(model(x), x[:, :2]), plan)


def block(group, sequence=False, **options):
    return variant(ParallelBlock, sequence)(HIDDEN, HEADS, group, **options)


def context(group, make):
    """One layer's attention over a sequence that is cut, and everything that comes back from it."""
    torch.manual_seed(4)
    attention = make(group, 2 * S + 1)
    pieces = [attention.own(x, 2).clone().requires_grad_() for x in torch.randn(3, B, 4, 2 * S + 1, 6).double()]
    y = attention(*pieces)
    y.square().sum().backward()
    return [y.detach(), *(x.grad for x in pieces)]


PROGRAMS = {
    "column": partial(layer, lambda group: ColumnParallelLinear(HIDDEN, 13, group, gather_output=True)),
    "row": partial(layer, lambda group: RowParallelLinear(HIDDEN, 7, group, scatter_input=True)),
    "MLP": partial(layer, lambda group: ParallelMLP(HIDDEN, group)),
    "attention": partial(layer, lambda group: ParallelSelfAttention(HIDDEN, HEADS, group, kv_heads=2)),
    "block": partial(layer, partial(block, dropout=0.2)),
    "block, sequence": partial(layer, partial(block, dropout=0.2, sequence=True), sequence_dim=1),
    "block, selective": partial(layer, partial(block, dropout=0.2, recompute="selective")),
    "block, full": partial(layer, partial(block, sequence=True, recompute="full"), sequence_dim=1),
    "vocabulary": vocabulary,
    "averaged": partial(data_parallel, overlapped=False),
    "averaged beside": partial(data_parallel, overlapped=True),
    "data and tensor": data_and_tensor_parallel,
    "GPT": gpt,
    "GPT, sequence": partial(gpt, sequence=True),
    "ZeRO 1": partial(zero, stage=1),
    "ZeRO 2": partial(zero, stage=2),
    "ZeRO 3": partial(zero, stage=3),
    "asynchronous": asynchronous,
    "ring": partial(context, make=RingAttention),
    "gathered": partial(context, make=GatheredAttention),
    "Ulysses": partial(context, make=partial(UlyssesAttention, heads=2)),
}


def all_programs(group):
    return {name: program(group) for name, program in PROGRAMS.items()}


def some_programs(group):
    """Few, for other kinds of memory."""
    names = ["block, sequence", "averaged beside", "MLP"]
    return [every_verb(group, (5, 12), torch.float16), *(PROGRAMS[name](group) for name in names)]
