"""Every layer of the book passes typed, forward and backward, on numbers and without: none was changed for it."""

import pytest
import torch

from lib import (
    GPT,
    Cluster,
    ColumnParallelLinear,
    ContextGPT,
    GatedMLP,
    GatheredAttention,
    GPTConfig,
    Llama,
    LlamaConfig,
    Mesh,
    OverlappedGPT,
    ParallelBlock,
    ParallelMLP,
    ParallelSelfAttention,
    RingAttention,
    RowParallelLinear,
    SequenceBlock,
    SequenceGPT,
    SequenceLayerNorm,
    SequenceLlama,
    SequenceRMSNorm,
    Shard,
    Typed,
    UlyssesAttention,
    average_gradients,
    fused_attend,
    shard,
    shard_batch,
    sum_context_gradients,
)

SMALL = GPTConfig(2, 16, 4, 50, 8)
LLAMA = LlamaConfig(layers=1, hidden=16, heads=4, kv_heads=2, inner=32, vocabulary=50, positions=8)
TOKENS = torch.arange(16).view(2, 8)

LAYERS = {
    "columns": (lambda g: ColumnParallelLinear(16, 8, g), None, "S2|S2"),
    "columns, gathered": (lambda g: ColumnParallelLinear(16, 8, g, gather_output=True), None, "R|R"),
    "rows, scattered": (lambda g: RowParallelLinear(16, 8, g, scatter_input=True), None, "R|R"),
    "mlp": (lambda g: ParallelMLP(16, g), None, "R|R"),
    "gated mlp": (lambda g: GatedMLP(16, 32, g), None, "R|R"),
    "attention": (lambda g: ParallelSelfAttention(16, 8, g), None, "R|R"),
    "shared heads": (lambda g: ParallelSelfAttention(16, 8, g, kv_heads=2), None, "R|R"),
    "fused kernel": (lambda g: ParallelSelfAttention(16, 8, g, attend=fused_attend), None, "R|R"),
    "selective": (lambda g: ParallelBlock(16, 8, g, dropout=0.1, recompute="selective"), None, "R|R"),
    "full": (lambda g: ParallelBlock(16, 8, g, recompute="full"), None, "R|R"),
    "layer norm": (lambda g: SequenceLayerNorm(16, g), 1, "S1|S1"),
    "rms norm": (lambda g: SequenceRMSNorm(16, g), 1, "S1|S1"),
    "sequence block": (lambda g: SequenceBlock(16, 8, g), 1, "S1|S1"),
}


def of_layer(group, make, dim, device):
    with torch.device(device):
        layer, x = make(group), torch.randn(2, 8, 16)
    x = (x if dim is None else shard(x, group, dim).clone()).requires_grad_()
    with Typed(tp=group) as types:
        types.parameters(layer, "tp")
        types.give(x, **({} if dim is None else {"tp": Shard(dim)}))
        y = layer(x)
        y.backward(torch.ones_like(y))
        types.check_gradients(layer)
        return types.short(y), types.of_gradient(x)["tp"].value == types.of(x)["tp"].value


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    make, dim, expected = LAYERS[name]
    assert Cluster(4).run(of_layer, make, dim, "meta") == [(expected, True)] * 4


def test_numbers_do_not_change():
    def run(group, typed):
        torch.manual_seed(0)
        model = SequenceGPT(SMALL, group)
        if typed:
            tokens = TOKENS.clone()
            with Typed(tp=group) as types:
                types.parameters(model, "tp")
                types.give(tokens)
                model(tokens, tokens).backward()
        else:
            model(TOKENS, TOKENS).backward()
        return [p.grad for p in model.parameters()]

    for plain, typed in zip(Cluster(2).run(run, False)[1], Cluster(2).run(run, True)[1], strict=True):
        assert torch.equal(plain, typed)


MODELS = {
    "gpt": lambda g: GPT(SMALL, g),
    "sequence": lambda g: SequenceGPT(SMALL, g),
    "overlapped": lambda g: OverlappedGPT(SMALL, g),
    "llama": lambda g: Llama(LLAMA, g),
    "sequence llama": lambda g: SequenceLlama(LLAMA, g),
}


def on_a_grid(group, make):
    mesh = Mesh(group, dp=2, tp=2)
    model = make(mesh.tp)
    tokens = shard_batch(TOKENS, mesh.dp)
    with Typed(dp=mesh.dp, tp=mesh.tp) as types:
        types.parameters(model, "tp", summed_later=("dp",))
        types.give(tokens, dp=Shard(0))
        loss = model(tokens, tokens)
        loss.backward()
        before = types.of_gradient(model.norm.weight)["dp"].value.op
        average_gradients(model, mesh.dp)
        types.check_gradients(model)
        return types.short(loss), before


@pytest.mark.parametrize("name", MODELS)
def test_models_on_two_axes(name):
    assert Cluster(4).run(on_a_grid, MODELS[name]) == [("Pmean|R R|R", "mean")] * 4


@pytest.mark.parametrize("kind", [RingAttention, GatheredAttention, UlyssesAttention])
def test_cut_sequences(kind):
    def run(group):
        mesh = Mesh(group, cp=2, tp=2)
        model = ContextGPT(SMALL, mesh.tp, kind(mesh.cp, 8))
        tokens = TOKENS.clone()
        with Typed(cp=mesh.cp, tp=mesh.tp) as types:
            types.parameters(model, "tp", summed_later=("cp",))
            types.give(tokens)
            loss = model(tokens, tokens)
            loss.backward()
            sum_context_gradients(model, mesh.cp)
            types.check_gradients(model)
            return types.short(loss)

    assert set(Cluster(4).run(run)) == {"R|R R|R"}
