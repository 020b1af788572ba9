"""The whole GPT under context x data x tensor parallelism equals one device: loss and every gradient."""

from functools import cache

import pytest
import torch
from parallel.dense_transformer import double, refuses  # noqa: F401
from parallel.small_gpt import alone, build, dense_weights, tokens_of

from lib import GPT, GPTConfig, Mesh, load_dense, mean_loss, vocab_parallel_cross_entropy
from lib.devices import Cluster
from lib.parallel.context.gathered import GatheredAttention
from lib.parallel.context.gpt import ContextGPT, sum_context_gradients
from lib.parallel.context.ring import RingAttention
from lib.parallel.context.ulysses import UlyssesAttention
from lib.parallel.data.average import average_gradients
from lib.parallel.sharding.dense import layout_of

CONFIG = GPTConfig(layers=2, hidden=24, heads=12, vocabulary=50, positions=16)
LENGTH, BATCH = 13, 3
TOKENS, TARGETS = tokens_of(BATCH, LENGTH), tokens_of(BATCH, LENGTH, seed=2)
PROMPT = TARGETS.clone()
PROMPT[:, :5] = -100  # a prompt that is not learned: the first devices count fewer tokens


def on_mesh(group, state, targets, make=RingAttention, dp=1, cp=1, tp=1, order="zigzag", recompute=None):
    """This device's model after a backward, and the loss."""
    mesh = Mesh(group, data=dp, context=cp, tensor=tp)
    everyone = group.split([[r for r in range(group.size) if r % tp == column] for column in range(tp)])
    attention = make(mesh.context, LENGTH, order)
    model = ContextGPT(CONFIG, mesh.tensor, attention, everyone, recompute).double()
    load_dense(model, state, mesh.tensor)
    rows = slice(mesh.data.rank, None, dp)
    loss = model(TOKENS[rows], targets[rows])
    loss.backward()
    return mesh, model, everyone, loss


@cache
def dense_step(targets):
    """Weights, and what one device makes of them: the loss, and the gradients by name."""
    state = dense_weights(CONFIG)

    def program(group):
        model = build(group, state, CONFIG)
        loss = model(TOKENS, targets)
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.named_parameters()}

    return state, *alone(program)


def assert_equals_one_device(targets=TARGETS, **grid):
    state, loss, grads = dense_step(targets)

    def program(group):
        mesh, model, everyone, mine = on_mesh(group, state, targets, **grid)
        sum_context_gradients(model, everyone)
        torch.testing.assert_close(mine.detach(), loss, atol=1e-12, rtol=1e-12)
        for name, p in model.named_parameters():
            piece = layout_of(model, name).piece(grads[name], mesh.tensor.size, mesh.tensor.rank)
            torch.testing.assert_close(p.grad, piece, atol=1e-12, rtol=1e-11, msg=lambda m, name=name: f"{name}: {m}")

    Cluster(grid.get("dp", 1) * grid.get("cp", 1) * grid.get("tp", 1)).run(program)


@pytest.mark.parametrize("make", [RingAttention, GatheredAttention, UlyssesAttention])
@pytest.mark.parametrize("targets", [TARGETS, PROMPT], ids=["all", "prompt"])
def test_context_alone(make, targets):
    assert_equals_one_device(targets, make=make, cp=4)


@pytest.mark.parametrize("order", ["contiguous", "striped", "zigzag"])
def test_each_cut(order):
    assert_equals_one_device(order=order, cp=3)


@pytest.mark.parametrize("grid", [(2, 2, 2), (1, 2, 3), (3, 2, 1), (1, 8, 1)], ids=str)
def test_with_data_and_tensor_parallelism(grid):
    """13 tokens over 2 devices, and 3 samples over 2 replicas: nobody has as many as the others."""
    dp, cp, tp = grid
    assert_equals_one_device(PROMPT, dp=dp, cp=cp, tp=tp)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_the_ring_runs_once_more_where_layers_are_computed_anew(recompute):
    assert_equals_one_device(recompute=recompute, cp=3)


def test_ulysses_divides_the_heads_that_tensor_parallelism_left():
    """12 heads: 4 on each of 3 tensor-parallel devices, over 4 in the context group."""
    assert_equals_one_device(make=UlyssesAttention, cp=4, tp=3)


@pytest.mark.parametrize(("weigh", "least", "most"), [("nowhere", 0.2, 1), ("after", 0.2, 1), ("before", 0, 1e-12)])
def test_the_mean_of_means_is_another_number(weigh, least, most):
    """The bug of several projects: each device averages over its own tokens, and the devices are averaged.

    To weigh the gradients afterwards, as data parallelism may, mends nothing here: through keys and values the loss of
    one device has reached the gradients of the others by then.
    """
    state, _, grads = dense_step(PROMPT)

    def program(group):
        model = ContextGPT(CONFIG, group.split(group.size), RingAttention(group, LENGTH, "contiguous")).double()
        load_dense(model, state, model.group)
        targets = model.attention.own(PROMPT)
        losses = vocab_parallel_cross_entropy(model(TOKENS), targets, model.group, CONFIG.vocabulary)
        share = int((targets != -100).sum()) / int((PROMPT != -100).sum())
        (mean_loss(losses, targets) * (share if weigh == "before" else 1)).backward()
        average_gradients(model, group, share={"nowhere": None, "after": share, "before": 1.0}[weigh])
        differences = (p.grad - grads[name] for name, p in model.named_parameters())
        sizes = (grads[name].norm() ** 2 for name, _ in model.named_parameters())
        return float((sum(d.norm() ** 2 for d in differences) / sum(sizes)) ** 0.5)

    for distance in Cluster(2).run(program):
        assert least <= distance <= most, distance


def test_the_next_token_comes_from_the_device_that_has_the_last():
    state = dense_weights(CONFIG)
    expected = alone(lambda group: build(group, state, CONFIG).next_logits(TOKENS))

    def program(group):
        model = ContextGPT(CONFIG, group.split(group.size), RingAttention(group, LENGTH)).double()
        load_dense(model, state, model.group)
        return model.next_logits(TOKENS)

    for logits in Cluster(4).run(program):
        torch.testing.assert_close(logits, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            ["RingAttention(17 tokens, zigzag)", "a model of 16 positions: it has none for the tokens from 16 on"],
            lambda group: ContextGPT(CONFIG, group.split(4), RingAttention(group, 17)),
        ),
        (
            ["ContextGPT: dropout=0.1", "set it to 0"],
            lambda group: ContextGPT(GPTConfig(1, 8, 2, dropout=0.1), group.split(4), RingAttention(group, 16)),
        ),
        (
            ["a tensor of shape (3, 13) must have all 16 along dim 1"],
            lambda group: ContextGPT(CONFIG, group.split(4), RingAttention(group, 16))(TOKENS),
        ),
        (
            ["ContextGPT on rank", "no cache for a sequence that is cut"],
            lambda group: ContextGPT(CONFIG, group.split(4), RingAttention(group, 13))(TOKENS, caches=[]),
        ),
    ],
)
def test_refused(words, call):
    refuses(words, call)


def test_targets_that_are_bytes():
    config = GPTConfig(layers=1, hidden=12, heads=2, vocabulary=256, positions=16)
    tokens, targets = tokens_of(2, LENGTH), tokens_of(2, LENGTH) + 100
    targets[0] = 156  # what -100 is as a byte

    def program(group, targets):
        torch.manual_seed(0)
        return ContextGPT(config, group.split(group.size), RingAttention(group, LENGTH))(tokens, targets).detach()

    right = Cluster(1).run(program, targets)[0]
    for found in Cluster(2).run(program, targets.to(torch.uint8)):
        torch.testing.assert_close(found, right)


def test_a_gpt_that_would_count_positions_anew_is_refused():
    def program(group):
        ring = RingAttention(group, LENGTH)
        return GPT(CONFIG, group.split(group.size), attend=ring)(ring.own(TOKENS))

    with pytest.raises(ValueError, match=r"GPT on rank 0 of 1: RingAttention.* positions .* from 0. Take ContextGPT"):
        Cluster(2).run(program)
    Cluster(1).run(program)  # which has the whole sequence
