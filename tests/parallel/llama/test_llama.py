"""The Llama: equal to one device in all its variants, in training on a grid, with caches and positions; refusals."""

from contextlib import nullcontext

import pytest
import torch
from covering import covering
from parallel.small_llama import CONFIG, SHARED, build, dense_weights, one_thread, tokens_of  # noqa: F401

from lib import dense_state, equal_to_one_device, fused_attend, gradient_norm, load_dense
from lib.devices import Cluster, Mesh
from lib.parallel.attention.cache import KVCache
from lib.parallel.context.ring import RingAttention
from lib.parallel.llama.config import LlamaConfig
from lib.parallel.llama.layer import GatedMLP
from lib.parallel.llama.model import Llama
from lib.parallel.llama.sequence import SequenceGatedMLP, SequenceLlama
from lib.parallel.sharding.dense import layout_of
from lib.parallel.sharding.linear import ColumnParallelLinear
from lib.parallel.sharding.placement import Shard
from lib.parallel.zero.fully_sharded import FullySharded
from lib.parallel.zero.optimizer import ShardedOptimizer

BOTH = pytest.mark.parametrize("make", [Llama, SequenceLlama], ids=["TP", "TP+SP"])


CONFIGS = {"GQA": CONFIG, "GQA, bias, norm, tied": SHARED}
OPTIONS = {"": {}, "full": {"recompute": "full"}, "fused": {"recompute": "selective", "attend": fused_attend}}


@pytest.mark.parametrize(
    ("config", "options", "size", "make"), covering(list(CONFIGS), list(OPTIONS), [2, 4], [Llama, SequenceLlama])
)
def test_gradients_equal_those_of_one_device(config, options, size, make):
    config = CONFIGS[config]

    def loss(group):
        model = make(config, group, **OPTIONS[options])
        model.forward = lambda tokens, run=model.forward: run(tokens[:, :-1], tokens[:, 1:])
        return model

    found = equal_to_one_device(loss, tokens_of(2, 13), devices=size, state=dense_weights(config), tolerance=1e-11)
    assert found, str(found)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_gated_mlp_is_that_of_one_device(size):
    found = equal_to_one_device(lambda group: GatedMLP(8, 12, group), torch.randn(2, 5, 8), devices=size)
    assert found, str(found)
    tokens = Shard(-2)
    found = equal_to_one_device(
        lambda group: SequenceGatedMLP(8, 12, group), torch.randn(2, 5, 8), devices=size, cut=tokens, output=tokens
    )
    assert found, str(found)


def test_gate_and_up_cut_as_one_is_another_mlp():
    def wrong(group):
        mlp = GatedMLP(8, 12, group)
        mlp.gate_up = ColumnParallelLinear(8, 24, group, bias=False)  # no blocks
        return mlp

    assert not equal_to_one_device(wrong, torch.randn(2, 5, 8), devices=2)
    assert equal_to_one_device(wrong, torch.randn(2, 5, 8), devices=1)


@BOTH
def test_one_token_after_the_other_with_caches_equals_all_at_once(make):
    state, tokens = dense_weights(SHARED), tokens_of(2, 8, SHARED)

    def program(group):
        model = build(group, state, SHARED, make is SequenceLlama)
        with torch.no_grad():
            whole = model.next_logits(tokens)
            if make is SequenceLlama:
                return whole, whole
            caches = [KVCache() for _ in model.blocks]
            model(tokens[:, :5], caches=caches)
            steps = [model.next_logits(tokens[:, i : i + 1], caches) for i in range(5, 8)]
        assert caches[0].seen == 8
        return whole, steps[-1]

    alone = Cluster(1).run(program)[0][0]
    for size in 2, 6:
        for whole, last in Cluster(size).run(program):
            assert torch.allclose(whole, last, rtol=1e-12)
        together = torch.cat([whole for whole, _ in Cluster(size).run(program)], 1)[:, : SHARED.vocabulary]
        assert torch.allclose(together, alone[:, : SHARED.vocabulary], rtol=1e-10)


def test_a_cache_holds_the_heads_of_its_device():
    def held(group, config):
        model, caches = Llama(config, group), [KVCache() for _ in range(2)]
        with torch.no_grad():
            model(tokens_of(3, 7), caches=caches)
        return sum(cache.nbytes for cache in caches)

    one = 2 * 2 * 3 * 7 * CONFIG.kv_heads * CONFIG.head_size * 4
    assert [Cluster(size).run(held, CONFIG)[0] for size in (1, 2, 4, 12)] == [one, one // 2, one // 4, one // 4]


def test_positions_of_a_piece_are_handed_in():
    state, tokens = dense_weights(), tokens_of(1, 8)

    def program(group, where):
        model = build(group, state)
        return model(tokens[:, [6]], positions=torch.tensor([where]))

    logits = [Cluster(1).run(program, where)[0] for where in (0, 6)]
    assert torch.allclose(*logits)  # alone, a token does not know where it stands

    def pair(group, positions):
        return build(group, state)(tokens[:, [1, 6]], positions=torch.tensor(positions))

    near, far, moved = (Cluster(2).run(pair, [a, b])[0] for a, b in ((0, 1), (1, 6), (9, 14)))
    assert not torch.allclose(near, far)
    assert torch.allclose(far, moved, rtol=1e-4)


@BOTH
@pytest.mark.parametrize("size", [2, 12])
def test_copies_of_shared_heads_count_once_in_the_norm_of_all_gradients(make, size):
    state, tokens = dense_weights(SHARED), tokens_of(2, 13, SHARED)

    def norm(group):
        model = build(group, state, SHARED, make is SequenceLlama)
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        return float(gradient_norm(model, group))

    assert Cluster(size).run(norm)[0] == pytest.approx(Cluster(1).run(norm)[0], rel=1e-12)


@BOTH
def test_training_on_a_grid_with_zero_equals_one_device(make):
    state, tokens = dense_weights(SHARED), tokens_of(4, 13, SHARED)

    def train(group, replicas):
        mesh = Mesh(group, dp=replicas, tp=group.size // replicas)
        model = build(mesh.tp, state, SHARED, make is SequenceLlama)
        optimizer = ShardedOptimizer(model, mesh.dp, lambda pieces: torch.optim.AdamW(pieces, lr=0.01))
        mine = tokens.chunk(replicas)[mesh.dp.rank]
        for _ in range(3):
            optimizer.zero_grad()
            model(mine[:, :-1], mine[:, 1:]).backward()
            optimizer.reduce_gradients()
            optimizer.step()
        return model

    alone = dense_state(Cluster(1).run(train, 1))
    merged = dense_state(Cluster(8).run(train, 2)[:4])
    for name, x in alone.items():
        assert torch.allclose(merged[name], x, atol=1e-9), name
        assert not torch.equal(x, state[name]), name


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_2_and_3_equal_one_device(stage):
    state, tokens = dense_weights(SHARED), tokens_of(4, 13, SHARED)

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    def train(group, replicas):
        mesh = Mesh(group, dp=replicas, tp=group.size // replicas)
        model = build(mesh.tp, state, SHARED)
        if stage == 3:
            sharded = FullySharded(model, mesh.dp, layers=model.blocks)
            optimizer = sgd(model.parameters())
        else:
            optimizer = ShardedOptimizer(model, mesh.dp, sgd)
        mine = tokens.chunk(replicas)[mesh.dp.rank]
        for _ in range(2):
            optimizer.zero_grad()
            with optimizer.reducing() if stage == 2 else nullcontext():
                model(mine[:, :-1], mine[:, 1:]).backward()
            optimizer.step()
        return sharded.whole_parameters() if stage == 3 else {n: p.detach() for n, p in model.named_parameters()}

    (layouts,) = Cluster(1).run(lambda group: {n: layout_of(Llama(SHARED, group), n) for n in state})
    (alone,) = Cluster(1).run(train, 1)
    many = Cluster(4).run(train, 2)
    for name, x in alone.items():
        assert not torch.equal(x, state[name]), name
        for rank, mine in enumerate(many):
            assert torch.allclose(mine[name], layouts[name].piece(x, 2, rank % 2), atol=1e-12), name


def test_initialized_as_the_shards_of_one_dense_model():
    def make(group):
        torch.manual_seed(5)
        return Llama(CONFIG, group)

    one, four = (dense_state(Cluster(size).run(make)) for size in (1, 4))
    assert all(torch.equal(one[name], four[name]) for name in one)
    assert {float(one[name].min()) for name in one if "norm" in name} == {1.0}
    assert float(one["head.weight"].std()) == pytest.approx(CONFIG.deviation, rel=0.1)


@pytest.mark.parametrize(
    ("changed", "size", "says"),
    [
        ({}, 5, "12 heads cannot be split over 5 devices: possible are 1, 2, 3, 4, 6, 12"),
        ({}, 3, "4 heads of keys and values cannot be laid out over 3 devices: one of the two numbers must divide"),
        ({"inner": 35}, 2, "GatedMLP: an inner size of 35 cannot be split over 2 devices"),
        ({"vocabulary": 3}, 4, "a vocabulary of 3 cannot be split over 4 devices: too few tokens"),
    ],
)
def test_devices_that_cannot_split_it(changed, size, says):
    config = LlamaConfig(**{**vars(CONFIG), **changed})
    with pytest.raises(ValueError, match=".") as refused:
        Cluster(size).run(lambda group: Llama(config, group))
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("tokens", "more", "says"),
    [
        ((3,), {}, "Llama on rank 0 of 2: tokens of shape (3,) must be (batch, S)"),
        ((2, 17), {}, "tokens of shape (2, 17) reach position 16; the model has 16, from 0 on"),
        ((1, 2), {"positions": torch.tensor([3, 16])}, "reach position 16; the model has 16"),
        ((1, 2), {"positions": torch.tensor([3])}, "need positions of shape (2,), not (1,)"),
        ((1, 2), {"caches": [KVCache()]}, "Llama on rank 0 of 2: 1 caches for 2 layers; give each layer one"),
        ((1, 2), {"caches": [KVCache()] * 2}, "one cache is there for several layers; give each layer one of its own"),
    ],
)
def test_refused_tokens(tokens, more, says):
    with pytest.raises(ValueError, match=".") as refused:
        Cluster(2).run(lambda group: Llama(CONFIG, group)(torch.zeros(tokens, dtype=torch.long), **more))
    assert says in str(refused.value)


def test_a_text_longer_than_the_sliding_window_is_refused_by_its_name():
    config = LlamaConfig(**{**vars(CONFIG), "positions": 8, "window": 8})
    with pytest.raises(ValueError, match=r"reach position 8.*sliding window of 8 \(sliding_window\).*shorter text"):
        Cluster(2).run(lambda group: Llama(config, group)(torch.zeros(1, 9, dtype=torch.long)))
    with pytest.raises(ValueError, match="positions=16 beyond window=8: a sliding window is not supported"):
        LlamaConfig(**{**vars(CONFIG), "window": 8})


def test_a_token_beyond_the_vocabulary():
    with pytest.raises(IndexError, match="token 50 is not in a vocabulary of 50; tokens are 0 to 49"):
        Cluster(2).run(lambda group: Llama(CONFIG, group)(torch.full((1, 2), 50)))


def test_options_that_are_none_of_these():
    with pytest.raises(ValueError, match="recompute='all' must be None, 'selective' or 'full'"):
        Cluster(1).run(lambda group: Llama(CONFIG, group, recompute="all"))

    def cached(group):
        model = Llama(CONFIG, group, recompute="full")
        model(tokens_of(1, 2), caches=[KVCache(), KVCache()])

    with pytest.raises(ValueError, match="would put keys and values in the cache a second time"):
        Cluster(1).run(cached)


def test_every_weight_has_a_shape_in_the_config():
    for config in CONFIG, SHARED:

        def shapes(group, config=config):
            return {name: tuple(p.shape) for name, p in Llama(config, group).named_parameters()}

        assert Cluster(1).run(shapes)[0] == config.shapes()
        state = dense_weights(config)
        del state["norm.weight"]
        with pytest.raises(ValueError, match=r"missing in the state: norm\.weight"):
            Cluster(2).run(lambda group, c=config, s=state: load_dense(Llama(c, group), s, group))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_cut_sequence_wants_its_positions(size):
    state, tokens = dense_weights(), tokens_of(2, 13)
    right = Cluster(1).run(lambda group: build(group, state)(tokens).detach())[0]

    def program(group, said):
        ring = RingAttention(group, 13)
        positions = torch.tensor([i for part in ring.places() for i in part]) if said else None
        found = build(group.split(group.size), state, attend=ring)(ring.own(tokens), positions=positions)
        return float((found.detach() - ring.own(right)).abs().max())

    assert max(Cluster(size).run(program, True)) < 1e-11
    if size == 1:
        assert max(Cluster(size).run(program, False)) < 1e-11
    else:
        with pytest.raises(ValueError, match=r"RingAttention.* sees a part of the sequence: say with positions=..."):
            Cluster(size).run(program, False)
