"""Tiles of tokens and inputs on the host change what is held, and no number."""

import torch
from parallel.dense_transformer import double  # noqa: F401
from parallel.small_gpt import build, dense_weights, tokens_of

from lib import GPTConfig, ParallelBlock, Replicate, TiledBlock, TiledContextGPT, load_dense, measure
from lib.devices import Cluster
from lib.parallel.context.gpt import sum_context_gradients
from lib.parallel.context.tiles import Host, in_tiles
from lib.parallel.context.ulysses import UlyssesAttention

CONFIG = GPTConfig(layers=2, hidden=24, heads=4, vocabulary=50, positions=16)
TOKENS, TARGETS = tokens_of(2, 13), tokens_of(2, 13, seed=2)


def test_the_gpt_in_tiles_equals_one_device():
    state = dense_weights(CONFIG)

    def alone(group):
        model = build(group, state, CONFIG)
        loss = model(TOKENS, TARGETS)
        loss.backward()
        return loss.detach(), [p.grad for p in model.parameters()]

    loss, grads = Cluster(1).run(alone)[0]

    def program(group):
        model = TiledContextGPT(CONFIG, group.split(group.size), UlyssesAttention(group, 13), tiles=3).double()
        load_dense(model, state, model.group)
        mine = model(TOKENS, TARGETS)
        mine.backward()
        sum_context_gradients(model, group)
        worst = max(float((p.grad - g).abs().max()) for p, g in zip(model.parameters(), grads, strict=True))
        return float((mine.detach() - loss).abs()), worst, [block.host.size for block in model.blocks]

    for rank, (off, worst, hosts) in enumerate(Cluster(4).run(program)):
        assert off < 1e-12
        assert worst < 1e-12
        tokens = 13 // 4 + (rank < 13 % 4)
        assert hosts == [2 * tokens * 24 * 8] * 2, "the input of each layer is on the host, and nothing else"


def block(kind):
    return lambda group: kind(64, 4, group)


def test_nothing_of_a_layer_stays_on_the_device():
    plain, tiled = (
        measure(block(kind), (1, 256, 64), devices=1, cut=Replicate()) for kind in (ParallelBlock, TiledBlock)
    )
    assert plain.activations > 10 * 256 * 64 * 2
    assert tiled.activations == 0
    assert tiled.forward.flops == plain.forward.flops
    # The layer is computed anew, and its MLP, whose tiles are computed anew by themselves, once more (PyTorch stops as
    # soon as it has what the backward needs, so not to the last product).
    anew, mlp = tiled.backward.flops - plain.backward.flops, 2 * 2 * 256 * 64 * 256
    assert plain.forward.flops < anew < plain.forward.flops + mlp


def test_one_tile_is_there_at_a_time():
    """An MLP of 32 widths: at most its inputs, one tile's inside, and what the backward of that needs."""

    def peak(tiles):
        def program(group):
            with torch.device("meta"):
                x, w = torch.empty(1, 1024, 8, requires_grad=True), torch.nn.Parameter(torch.empty(256, 8))
            with group.span("work"):
                in_tiles(lambda piece: (piece @ w.T).relu() @ w, tiles, x).sum().backward()

        cluster = Cluster(1, hardware="H100")
        cluster.run(program)
        return cluster.trace.during("work").peak(0)

    inside = 1024 * 256 * torch.get_default_dtype().itemsize
    assert peak(1) > 2 * inside
    assert peak(16) < peak(1) / 8


def test_what_waits_on_the_host_comes_back():
    x, host = torch.randn(5, requires_grad=True), Host()
    with host:
        y = x.sin()
    y.sum().backward()
    assert torch.equal(x.grad, x.detach().cos())
    assert host.size == 5 * x.element_size()
