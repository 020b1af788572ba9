"""Stage 3 on models of every kind: tied, frozen, of several dtypes, called twice, checkpointed or interrupted."""

import weakref
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lib import (
    FullySharded,
    MasterWeights,
    ShardedOptimizer,
    average_gradients,
    shard_batch,
)
from lib.devices import Cluster, Hardware, Link, MismatchError
from lib.parallel.zero.piece import Piece

HARDWARE = Hardware("some", 1e9, 1e9, 1e9, Link(1e-6, 1e9))
TOKENS, D, BATCH = 5, 4, 12


@pytest.fixture(autouse=True)
def small(monkeypatch):
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.wide, self.narrow = nn.Linear(D, 3 * D), nn.Linear(3 * D, D, bias=False)

    def forward(self, x):
        return x + self.narrow(F.gelu(self.wide(self.norm(x))))


class Model(nn.Module):
    """(B,) tokens -> (B, TOKENS). `change` gets the finished model, before anything is sharded."""

    def __init__(self, change=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(TOKENS, D)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.head = nn.Linear(D, TOKENS, bias=False)
        if change:
            change(self)

    def forward(self, tokens, around=lambda block, x: block(x)):
        x = self.embed(tokens)
        for block in self.blocks:
            x = around(block, x)
        return self.head(x)


DATA = torch.arange(BATCH) % TOKENS


@cache
def steps_alone(change, count=2, **options):
    model = Model(change)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(DATA, **options), (DATA + 1) % TOKENS).backward()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def steps_sharded(group, change, layers, count=2, **options):
    model = Model(change)
    names = [name for name, _ in model.named_parameters()]
    sharded = FullySharded(model, group, layers(model))
    assert [name for name, _ in model.named_parameters()] == names
    assert all(p.ndim == 1 and p.is_leaf for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    tokens = shard_batch(DATA, group)
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens, **options), (tokens + 1) % TOKENS).backward()
        optimizer.step()
    return sharded.whole_parameters()


def check(change=None, layers=lambda model: model.blocks, size=3, tolerance=1e-12, **options):
    cluster = Cluster(size)
    alone = steps_alone(change, **options)
    for found in cluster.run(steps_sharded, change, layers, **options):
        assert list(found) == list(alone)
        for name, x in found.items():
            assert x.dtype == alone[name].dtype
            torch.testing.assert_close(x, alone[name], rtol=0, atol=tolerance)
    return cluster


def tie_embed_and_head(model):
    model.head.weight = model.embed.weight


def tie_two_blocks(model):
    model.blocks[2].wide.weight = model.blocks[0].wide.weight
    model.blocks[1].norm.bias = model.blocks[0].norm.weight


def freeze_a_block(model):
    model.blocks[1].requires_grad_(False)


def freeze_parts(model):
    model.blocks[0].wide.requires_grad_(False)
    model.blocks[1].norm.weight.requires_grad_(False)
    model.embed.requires_grad_(False)


def freeze_all_but_the_first(model):
    model.requires_grad_(False)
    model.embed.requires_grad_(True)


LAYERS = {
    "none": lambda model: [],
    "blocks": lambda model: model.blocks,
    "some": lambda model: [model.blocks[1]],
    "all": lambda model: [model.embed, *model.blocks, model.head],
    "inside one another": lambda model: [model.blocks[0], model.blocks[0].wide, model.blocks[1].wide, model.blocks[1]],
}
CHANGES = [None, tie_embed_and_head, tie_two_blocks, freeze_a_block, freeze_parts, freeze_all_but_the_first]


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__ if change else "plain")
def test_same_weights(change, layers):
    check(change, layers)


def two_dtypes(model):
    model.blocks[1].norm.float()
    model.blocks[1].norm.forward = lambda x: F.layer_norm(
        x.float(), (D,), model.blocks[1].norm.weight, model.blocks[1].norm.bias
    ).double()


def test_several_dtypes_in_one_layer():
    check(two_dtypes, size=2, tolerance=1e-6)


@pytest.mark.parametrize("change", [None, tie_two_blocks], ids=["plain", "tied"])
def test_a_layer_that_is_called_twice(change):
    check(change, around=lambda block, x: block(block(x)))


def test_a_parameter_that_two_layers_share_is_gathered_once_for_all():
    def gathers(change):
        cluster = check(change, LAYERS["all"], count=1)
        return cluster.meters.count(0, "all_gather").calls

    # embed, 3 blocks and head: forward, and, but for embed, backward; whole_parameters and the check at the start
    assert gathers(None) == 5 + 4 + 5 + 1
    # now embed and head are the model's own; gathered again at the head
    assert gathers(tie_embed_and_head) == 4 + 4 + 4 + 1


def test_gradients_of_frozen_parameters_do_not_travel():
    cluster = check(freeze_parts, count=1, size=4)
    model = Model(freeze_parts)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert cluster.meters.count(verb="reduce_scatter").bytes_sent == 3 * 8 * trained  # (P-1)/P each, P devices


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_layers_are_gathered_no_more_often(use_reentrant):
    def recompute(block, x):
        return checkpoint(block, x, use_reentrant=use_reentrant)

    plain = check()
    again = check(around=recompute)
    if not use_reentrant:  # a reentrant one has a backward inside a backward, with an end of its own
        assert again.meters.count(0, "all_gather") == plain.meters.count(0, "all_gather")
    assert again.meters.count(0, "reduce_scatter") == plain.meters.count(0, "reduce_scatter")


def activations(shards, **options):
    cluster = Cluster(1, hardware=HARDWARE)

    def program(group):
        model = Model()
        if shards:
            FullySharded(model, group, model.blocks)
        model(DATA, **options).sum().backward()

    cluster.run(program)
    return cluster.trace.peak(0, "activations")


def test_activations_are_saved_as_without_sharding():
    def recompute(block, x):
        return checkpoint(block, x, use_reentrant=False)

    assert activations(shards=True) == activations(shards=False) > 0
    assert activations(shards=True, around=recompute) < activations(shards=True) / 2


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__ if change else "plain")
def test_no_whole_parameter_outlives_its_layer(change):
    def program(group):
        model = Model(change)
        originals = [weakref.ref(p) for p in model.parameters()]
        FullySharded(model, group, model.blocks)
        assert not any(ref() is not None for ref in originals)
        alive = []
        for block in model.blocks:
            block.wide.register_forward_hook(lambda wide, *_: alive.append(weakref.ref(wide.weight.untyped_storage())))
        loss = model(shard_batch(DATA, group)).sum()
        assert len(alive) == 3
        assert not any(ref() is not None for ref in alive), "between forward and backward"
        loss.backward()
        assert not any(part._sharded.again for part in (model, *model.blocks)), "after the backward"
        assert all(isinstance(p, Piece) for p in model.parameters())

    Cluster(3).run(program)


def test_nothing_stale_is_used_after_a_backward_that_did_not_come_to_its_end():
    def program(group, interrupted):
        model = nn.Sequential(nn.Linear(D, D), nn.Linear(D, D))
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.5)
        FullySharded(model, group, model)
        x = torch.ones(2, D, requires_grad=True)
        if interrupted:
            torch.autograd.grad(model(x).sum(), x)  # the gradients of the parameters are not wanted
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(2.0)
        model(x).sum().backward()
        return [p.grad for p in model.parameters()], x.grad

    (wanted, wanted_x), *_ = Cluster(2).run(program, False)
    (found, found_x), *_ = Cluster(2).run(program, True)
    assert torch.equal(wanted_x, found_x)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_without_gradients_the_forward_is_that_of_the_whole_model():
    def program(group):
        model = Model()
        FullySharded(model, group, model.blocks)
        with torch.no_grad():
            return model(DATA)

    wanted = Model()(DATA)
    assert all(torch.equal(found, wanted) for found in Cluster(3).run(program))


def test_a_layer_may_be_called_alone():
    def program(group):
        model = Model()
        FullySharded(model, group, model.blocks)
        x = torch.ones(2, D)
        model.blocks[0](x).sum().backward()
        return model.blocks[0].wide.weight.grad, [p.grad for p in model.blocks[1].parameters()]

    model = Model()
    model.blocks[0](torch.ones(2, D)).sum().backward()
    outputs = Cluster(3).run(program)
    found = torch.cat([grad for grad, _ in outputs])
    torch.testing.assert_close(found, model.blocks[0].wide.weight.grad.flatten(), rtol=0, atol=1e-13)
    assert all(grad is None for _, others in outputs for grad in others)


def test_after_a_failed_forward_the_pieces_are_back():
    def program(group):
        model = Model()
        FullySharded(model, group, model.blocks)
        pieces = list(model.parameters())
        with pytest.raises(IndexError):
            model(torch.tensor([TOKENS]))
        with pytest.raises(RuntimeError, match="shape"):
            model.blocks[0](torch.ones(1, D + 1))
        assert all(a is b for a, b in zip(pieces, model.parameters(), strict=True))
        assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None

    Cluster(2).run(program)


@pytest.mark.parametrize("hardware", [None, HARDWARE], ids=["no clock", "clock"])
def test_what_was_changed_in_place_since_the_forward_is_refused(hardware):
    def program(group):
        model = nn.Sequential(nn.Linear(D, D), nn.Sigmoid())
        FullySharded(model, group)
        y = model(torch.ones(1, D))
        with torch.no_grad():
            y.mul_(2)
        y.sum().backward()

    with pytest.raises(RuntimeError, match=r"a tensor of shape \(1, 4\) that the backward needs was changed"):
        Cluster(2, hardware=hardware).run(program)


def test_devices_that_call_different_layers_are_told_so():
    def program(group):
        model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(3, 3)])
        FullySharded(model, group, model)
        model[group.rank](torch.ones(1, 2 + group.rank))

    with pytest.raises((MismatchError, RuntimeError)):
        Cluster(2).run(program)


# ---- mixed precision: the same bits at all stages ----


def mixed(group, stage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, 2 * D), nn.Tanh(), nn.Linear(2 * D, D)).bfloat16()

    def make_optimizer(parameters):
        return MasterWeights(parameters, lambda masters: torch.optim.AdamW(masters, lr=1e-3))

    if stage == 3:
        sharded = FullySharded(model, group, model)
    optimizer = (
        ShardedOptimizer(model, group, make_optimizer) if stage in (1, 2) else make_optimizer(model.parameters())
    )
    x = shard_batch(torch.linspace(-1, 1, 8 * D).view(8, D).bfloat16(), group)
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), x.flip(1))
        if stage == 2:
            with optimizer.reducing():
                loss.backward()
        else:
            loss.backward()
        if stage == 0:
            average_gradients(model, group)
        elif stage == 1:
            optimizer.reduce_gradients()
        optimizer.step()
    return sharded.whole_parameters() if stage == 3 else {n: p.detach() for n, p in model.named_parameters()}


@cache
def averaged(size):
    """What data parallelism makes of it."""
    return Cluster(size).run(mixed, 0)[0]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_bfloat16_with_master_weights_has_the_bits_of_data_parallelism(size, stage):
    wanted = averaged(size)
    for found in Cluster(size).run(mixed, stage):
        assert found.keys() == wanted.keys()
        assert all(x.dtype == torch.bfloat16 and torch.equal(x, wanted[name]) for name, x in found.items())


def test_master_weights_take_steps_that_bfloat16_would_round_away():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    plain = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = MasterWeights([p], lambda masters: torch.optim.SGD(masters, lr=1e-3))
    for _ in range(16):
        p.grad = torch.ones_like(p)
        optimizer.step()
        plain.data -= 1e-3
    assert plain.tolist() == [1.0] * 3
    assert p.tolist() == [torch.tensor(1 - 16e-3).bfloat16().item()] * 3
    assert optimizer.masters[0].dtype == torch.float32
    assert optimizer.masters[0].grad is None
    optimizer.zero_grad()
    assert p.grad is None
    optimizer.param_groups[0]["weight_decay"] = 0.5
    optimizer.step()
    assert p.tolist() == [torch.tensor(1 - 16e-3).bfloat16().item()] * 3, "without a gradient, no step"
