"""The GPT on many devices against the same class on one: initialization, loss, gradients, training."""

from dataclasses import replace

import pytest
import torch
from parallel.small_gpt import CONFIG, COUNTS, alone, build, dense_weights, one_thread, tokens_of  # noqa: F401
from parallel.variants import variant
from torch.nn import functional as F

from lib import KVCache, average_gradients, dense_state, shard_batch
from lib.devices import Cluster, Mesh
from lib.parallel.gpt.model import GPT

STATE = dense_weights()
TOKENS, TARGETS = tokens_of(3, 11), tokens_of(3, 11, seed=2)
SEQUENCE = pytest.mark.parametrize("sequence_parallel", [False, True], ids=["TP", "TP+SP"])


def gradients(models):
    """The dense gradients, from the models of all devices. Their weights are lost."""
    for model in models:
        for p in model.parameters():
            p.data = p.grad
    return dense_state(models)


def step(group, config=CONFIG, **options):
    model = build(group, STATE, config, **options)
    loss = model(TOKENS, TARGETS)
    loss.backward()
    return model, loss.detach()


@SEQUENCE
@pytest.mark.parametrize("size", COUNTS)
def test_initialized_as_the_shards_of_one_dense_model_whatever_the_device_count(size, sequence_parallel):
    torch.manual_seed(5)
    dense = alone(lambda group: GPT(CONFIG, group)).state_dict()
    torch.manual_seed(5)
    whole = dense_state(Cluster(size).run(lambda group: variant(GPT, sequence_parallel)(CONFIG, group)))
    assert whole.keys() == dense.keys()
    assert all(torch.equal(whole[name], dense[name]) for name in dense)


def test_initialization_is_that_of_gpt2():
    config = replace(CONFIG, hidden=240, vocabulary=500, positions=100, layers=8)
    state = alone(lambda group: GPT(config, group)).state_dict()
    for name, x in state.items():
        if x.ndim == 1:
            assert torch.equal(x, torch.full_like(x, float("norm" in name and name.endswith("weight")))), name
        else:
            expected = 0.02 / 4 if "out" in name or "down" in name else 0.02  # 4: the root of 2 x 8 layers
            assert abs(float(x.std()) / expected - 1) < 0.02, name
            assert abs(float(x.mean())) < expected / 50, name


def test_the_padding_of_the_embedding_starts_at_zero_and_gets_no_gradient():
    def program(group):
        model = GPT(CONFIG, group)
        model(TOKENS, TARGETS).backward()
        return model.embedding.weight.detach(), model.embedding.weight.grad

    weights, grads = (torch.cat(some) for some in zip(*Cluster(12).run(program), strict=True))
    assert len(weights) == 60
    assert not weights[50:].any()
    assert not grads[50:].any()
    assert weights[:50].any(1).all()
    assert grads[:50].any(1).all()


@SEQUENCE
def test_the_sum_of_a_row_for_the_token_and_one_for_its_position(sequence_parallel):
    outputs = Cluster(2).run(lambda group: build(group, STATE, sequence_parallel=sequence_parallel).embed(TOKENS, 5))
    whole = torch.cat(outputs, 1) if sequence_parallel else outputs[1]
    assert torch.equal(whole, STATE["embedding.weight"][TOKENS] + STATE["positions.weight"][5:16])


@SEQUENCE
@pytest.mark.parametrize("recompute", [None, "selective", "full"])
@pytest.mark.parametrize("size", [1, 4])
def test_gradients_equal_those_of_one_device(size, recompute, sequence_parallel):
    model, loss = alone(step)
    results = Cluster(size).run(step, sequence_parallel=sequence_parallel, recompute=recompute)
    assert all(abs(other - loss) < 1e-12 for _, other in results)
    dense, whole = gradients([model]), gradients([model for model, _ in results])
    assert all((dense[name] - whole[name]).abs().max() < 1e-12 for name in CONFIG.shapes())
    assert all(x.abs().max() > 1e-6 for x in dense.values())


@SEQUENCE
def test_the_loss_is_the_mean_cross_entropy_of_the_whole_logits(sequence_parallel):
    def program(group):
        model = build(group, STATE, sequence_parallel=sequence_parallel)
        pieces = model(TOKENS)
        whole = model.whole_logits(pieces)
        return pieces.shape, whole.detach(), model(TOKENS, TARGETS).detach()

    for shape, whole, loss in Cluster(4).run(program):
        assert shape == (3, 11, 13)
        assert whole.shape == (3, 11, 50)
        assert abs(loss - F.cross_entropy(whole.flatten(0, 1), TARGETS.flatten())) < 1e-12


@SEQUENCE
@pytest.mark.parametrize("size", [1, 4, 12])
def test_one_position_after_the_other_equals_all_at_once(size, sequence_parallel):
    """Also where there are fewer new tokens than devices."""

    def program(group):
        model = build(group, STATE, sequence_parallel=sequence_parallel)
        caches = [KVCache() for _ in model.blocks]
        parts = [model(part, caches=caches) for part in TOKENS.split([1, 5, 1, 4], 1)]
        last = model.next_logits(TOKENS)
        assert caches[0].seen == caches[1].seen == 11
        return model.whole_logits(model(TOKENS)), model.whole_logits(torch.cat(parts, 1)), model.whole_logits(last)

    with torch.no_grad():
        for whole, parts, last in Cluster(size).run(program):
            assert (whole - parts).abs().max() < 1e-12
            assert (whole[:, -1] - last).abs().max() < 1e-12


def test_the_logits_of_padding_are_minus_infinity_when_a_token_is_to_be_chosen():
    pieces = Cluster(12).run(lambda group: build(group, STATE).next_logits(TOKENS))
    whole = torch.cat(pieces, -1)
    assert whole.shape == (3, 60)
    assert (whole[:, 50:] == -torch.inf).all()
    assert whole[:, :50].isfinite().all()
    assert not whole.requires_grad


@SEQUENCE
def test_dropout_is_in_use_and_off_in_evaluation(sequence_parallel):
    def program(group, dropout, training):
        model = build(group, STATE, replace(CONFIG, dropout=dropout), sequence_parallel=sequence_parallel)
        return model.train(training)(TOKENS, TARGETS).detach()

    exact = alone(program, 0.0, True)
    dropped = Cluster(4).run(program, 0.5, True)
    assert all(abs(loss - exact) > 1e-3 for loss in dropped)
    assert all(torch.equal(loss, dropped[0]) for loss in dropped), "replicated all the same"
    assert all(abs(loss - exact) < 1e-12 for loss in Cluster(4).run(program, 0.5, False))


def test_dropout_after_the_embedding():
    def program(group):
        model = build(group, STATE, replace(CONFIG, dropout=0.5))
        return model.embed(TOKENS).detach()

    outputs = Cluster(2).run(program)
    assert torch.equal(*outputs)
    assert 0.4 < float((outputs[0] == 0).double().mean()) < 0.6


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_both_kinds_of_gelu(approximate):
    model = alone(lambda group: GPT(replace(CONFIG, approximate=approximate), group))
    assert [block.mlp.approximate for block in model.blocks] == [approximate] * 2


def train(group, dp, tp, sequence_parallel):
    mesh = Mesh(group, dp=dp, tp=tp)
    model = build(mesh.tp, STATE, sequence_parallel=sequence_parallel)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for number in range(3):
        text = tokens_of(4, 12, seed=number)
        tokens, targets = shard_batch(text[:, :-1], mesh.dp), shard_batch(text[:, 1:], mesh.dp)
        optimizer.zero_grad()
        loss = model(tokens, targets)
        loss.backward()
        average_gradients(model, mesh.dp)
        optimizer.step()
        losses.append(float(mesh.dp.all_reduce(loss.detach())) / dp)
    return model, losses


@SEQUENCE
def test_data_and_tensor_parallel_training_equals_that_of_one_device(sequence_parallel):
    model, losses = alone(train, 1, 1, False)
    results = Cluster(4).run(train, 2, 2, sequence_parallel)
    assert all(abs(a - b) < 1e-12 for _, others in results for a, b in zip(losses, others, strict=True))
    assert losses[0] != losses[1]
    dense = dict(model.named_parameters())
    for replica in (results[:2], results[2:]):
        whole = dense_state([model for model, _ in replica])
        assert all((whole[name] - dense[name]).abs().max() < 1e-9 for name in dense)  # Adam divides by small numbers


def test_a_pipeline_of_two_stages_from_the_same_parts():
    def program(group):
        model = build(group.split(2), STATE)
        if group.rank == 0:
            group.send(model.blocks[0](model.embed(TOKENS)), dst=1)
            return None
        return model.head(model.blocks[1](group.recv(src=0)))

    cluster = Cluster(2)
    with torch.no_grad():
        _, piped = cluster.run(program)
        assert torch.equal(piped, alone(lambda group: build(group, STATE)(TOKENS)))
    assert cluster.meters.count(0, "send").calls == 1


@pytest.mark.parametrize("shape", [(2, 17), (3,)], ids=str)
def test_refused_tokens(shape):
    with pytest.raises(ValueError) as refused:
        Cluster(2).run(lambda group: GPT(CONFIG, group)(torch.zeros(shape, dtype=torch.long)))
    assert str(refused.value) == (
        f"GPT on rank 0 of 2: tokens of shape {shape} after 0 others; they must be (batch, S) with at most 16 "
        "positions in all"
    )


def test_no_more_positions_than_there_are_with_a_cache_either():
    def program(group):
        model, caches = GPT(CONFIG, group), [KVCache() for _ in range(2)]
        with torch.no_grad():
            model(tokens_of(1, 15), caches=caches)
            model(tokens_of(1, 1), caches=caches)
            model(tokens_of(1, 1), caches=caches)

    with pytest.raises(ValueError, match=r"tokens of shape \(1, 1\) after 16 others"):
        Cluster(2).run(program)


def test_one_cache_for_each_block():
    with pytest.raises(ValueError) as refused:
        Cluster(1).run(lambda group: GPT(CONFIG, group)(TOKENS, caches=[KVCache()]))
    assert str(refused.value) == "GPT on rank 0 of 1: 1 caches for 2 blocks; give each block one of its own"
    with pytest.raises(ValueError, match="one cache is there for several blocks; give each block one of its own"):
        Cluster(1).run(lambda group: GPT(CONFIG, group)(TOKENS, caches=[KVCache()] * 2))

    def one_knows_more(group):
        model, caches = GPT(CONFIG, group), [KVCache() for _ in range(2)]
        with torch.no_grad():
            model(TOKENS, caches=caches)
            model(TOKENS, caches=[caches[0], KVCache()])

    with pytest.raises(ValueError, match=r"the caches have seen \[\d+, 0\] positions, and all must have seen the same"):
        Cluster(1).run(one_knows_more)
