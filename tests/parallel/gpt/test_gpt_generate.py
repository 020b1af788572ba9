"""Generation: the same text for every device count, with a cache and without; drawn as softmax says."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from covering import covering
from parallel.small_gpt import CONFIG, alone, build, dense_weights, one_thread, tokens_of  # noqa: F401

from lib.devices import Cluster
from lib.parallel.gpt.generate import generate, keep_largest, largest

STATE = dense_weights()
PROMPT = tokens_of(3, 4)
WAYS = {"greedy": {}, "drawn": {"temperature": 0.8}, "top 5": {"temperature": 1.3, "top_k": 5}}
WAY = pytest.mark.parametrize("way", WAYS)


def text(group, prompt=PROMPT, count=7, sequence_parallel=False, **options):
    return generate(build(group, STATE, sequence_parallel=sequence_parallel), prompt, count, **options)


@cache
def written_alone(way):
    """What one device writes."""
    return alone(text, seed=3, **WAYS[way])


MORE = [{}, {"cache": False}, {"sequence_parallel": True}]


@pytest.mark.parametrize(("size", "way", "more"), [*covering([2, 3, 4], list(WAYS), MORE), (12, "top 5", {})])
def test_the_same_on_all_devices_with_and_without_cache(size, way, more):
    expected = written_alone(way)
    assert expected.shape == (3, 11)
    assert torch.equal(expected[:, :4], PROMPT)
    assert all(torch.equal(out, expected) for out in Cluster(size).run(text, seed=3, **WAYS[way], **more))


@WAY
def test_equal_to_a_dense_loop(way):
    """On one device with the whole logits: argmax of logits / temperature + Gumbel noise, after a plain top-k."""
    temperature, k = WAYS[way].get("temperature"), WAYS[way].get("top_k", 50)

    def dense(group):
        model, tokens = build(group, STATE), PROMPT
        noise = torch.Generator().manual_seed(3)
        for _ in range(7):
            logits = model.next_logits(tokens)
            if temperature:
                worst = logits.sort(-1).values[:, -k, None]
                logits = torch.where(logits < worst, -torch.inf, logits) / temperature
                exponential = torch.empty(50, 3, dtype=torch.float64).exponential_(generator=noise)
                logits = logits - exponential.log().T
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
        return tokens

    assert torch.equal(Cluster(4).run(text, seed=3, **WAYS[way])[2], alone(dense))


@pytest.mark.parametrize("top_k", [None, 7])
def test_drawn_as_often_as_softmax_says(top_k):
    prompts, temperature = PROMPT[:1].expand(4_000, -1), 1.5

    def program(group):
        model = build(group, STATE)
        drawn = generate(model, prompts, 1, temperature=temperature, top_k=top_k, seed=0)[:, -1]
        return drawn, model.whole_logits(model.next_logits(PROMPT[:1]))[0]

    drawn, logits = Cluster(2).run(program)[0]
    if top_k:
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    expected = (logits / temperature).softmax(-1)
    often = drawn.bincount(minlength=50) / len(drawn)
    assert (often[expected == 0] == 0).all()
    deviation = (expected * (1 - expected) / len(drawn)).sqrt()  # of a count of independent draws
    assert ((often - expected).abs() < 4 * deviation + 1e-9).all()
    assert (expected > 0.01).sum() > 4


def test_the_likeliest_one_alone_is_no_draw():
    greedy, drawn = (Cluster(2).run(text, **way)[1] for way in ({}, {"temperature": 3.0, "top_k": 1, "seed": 1}))
    assert torch.equal(greedy, drawn)


def test_seeds():
    ways = [{"seed": 3}, {"seed": 3}, {"seed": 0}, {}]
    same, again, other, free = (Cluster(2).run(text, temperature=1.0, **way)[0] for way in ways)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert not torch.equal(same, free)


def test_without_a_seed_all_devices_follow_rank_0_and_each_call_is_another_text():
    def program(group):
        torch.manual_seed(100 + group.rank)  # streams that have come apart
        return text(group, temperature=1.0), text(group, temperature=1.0)

    results = Cluster(3).run(program)
    assert all(torch.equal(first, results[0][0]) and torch.equal(second, results[0][1]) for first, second in results)
    assert not torch.equal(*results[0])


@WAY
def test_a_seed_leaves_the_device_s_own_stream_alone(way):
    def program(group):
        model = build(group, STATE)
        before = torch.get_rng_state()
        generate(model, PROMPT, 2, seed=3, **WAYS[way])
        return torch.equal(before, torch.get_rng_state())

    assert all(Cluster(2).run(program))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_dropped_and_the_mode_stays(training):
    def program(group, dropout):
        model = build(group, STATE, replace(CONFIG, dropout=dropout)).train(training)
        out = generate(model, PROMPT, 5)
        assert model.training == model.blocks[0].training == training
        with pytest.raises(IndexError):
            generate(model, PROMPT + 50, 5)
        assert model.training == training, "restored also when it fails"
        return out

    assert torch.equal(Cluster(2).run(program, 0.5)[1], Cluster(2).run(program, 0.0)[1])


def test_no_gradient_is_kept_and_the_prompt_stays():
    prompt = PROMPT.clone()
    out = Cluster(2).run(text, prompt)[0]
    assert out.dtype == torch.int64
    assert torch.equal(prompt, PROMPT)
    assert torch.equal(Cluster(2).run(text, prompt, 0)[1], PROMPT)
    assert Cluster(2).run(text, prompt, 12)[1].shape == (3, 16)  # as long as there are positions


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_of_equal_scores_the_first_token_wins(size):
    scores = torch.tensor(
        [[0.0, 1.0, 3.0, 3.0, 3.0, 2.0], [7.0, 1.0, 7.0, 0.0, 0.0, 7.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
    )
    winners = Cluster(size).run(lambda group: largest(scores.chunk(size, 1)[group.rank], group))
    assert all(winner.tolist() == [2, 0, 5] for winner in winners)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_top_k_keeps_the_largest_and_their_equals(size):
    scores = torch.tensor([[5.0, 1.0, 3.0, 3.0, 4.0, 2.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    for k, kept in ((1, ["5", "5"]), (3, ["5334", "345"]), (6, ["513342", "012345"]), (99, ["513342", "012345"])):
        pieces = Cluster(size).run(lambda group, k=k: keep_largest(scores.chunk(size, 1)[group.rank], k, group))
        rows = torch.cat(pieces, 1)
        assert ["".join(f"{x:.0f}" for x in row if x > -torch.inf) for row in rows] == kept


@WAY
def test_what_one_token_costs(way):
    cluster, layers = Cluster(4), CONFIG.layers
    cluster.run(text, count=10, seed=3, **WAYS[way])
    calls = {verb: cluster.meters.count(2, verb).calls for verb in cluster.meters.verbs()}
    assert calls == {"all_reduce": 10 * (2 * layers + 1), "all_gather": 10 * (2 if way == "top 5" else 1)}
    rounds = 3 * 24 * 8 * (4 + 9)  # (batch, S, hidden) in float64: the prompt, then nine single tokens
    assert cluster.meters.count(verb="all_reduce").bytes_sent == 2 * 3 * rounds * (2 * layers + 1)
    offers = 3 * 2 * 8 * 4 + (3 * 5 * 8 * 4 if way == "top 5" else 0)  # the best and its number; five each
    assert cluster.meters.count(verb="all_gather").bytes_sent == 3 * offers * 10


def test_without_seed_one_broadcast_more_for_a_draw_and_none_for_greedy():
    cluster = Cluster(2)
    for temperature, broadcasts in ((0.0, 0), (1.0, 1)):
        cluster.run(text, temperature=temperature)
        assert cluster.meters.count(0, "broadcast").calls == broadcasts


def test_on_meta_for_models_that_no_laptop_holds():
    with torch.device("meta"):
        state = {name: x.to("meta") for name, x in STATE.items()}
        out = Cluster(2).run(lambda group: generate(build(group, state), PROMPT.to("meta"), 3, 1.0, 5, seed=0))[0]
    assert out.shape == (3, 7)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (PROMPT[0], {}, "the prompt of shape (4,) must be (batch, S) with S at least 1"),
        (PROMPT[:, :0], {}, "the prompt of shape (3, 0) must be (batch, S) with S at least 1"),
        (PROMPT, {"count": 13}, "count=13 tokens after a prompt of 4; the model has 16 positions in all"),
        (PROMPT, {"count": -1}, "count=-1 tokens after a prompt of 4; the model has 16 positions in all"),
        (PROMPT, {"temperature": -0.1}, "temperature=-0.1 must be 0 (the likeliest token) or above, and finite"),
        (PROMPT, {"temperature": float("nan")}, "temperature=nan must be 0 (the likeliest token) or above, and finite"),
        (PROMPT, {"temperature": float("inf")}, "temperature=inf must be 0 (the likeliest token) or above, and finite"),
        (PROMPT, {"temperature": 1.0, "top_k": 0}, "top_k=0 must be at least 1, or None for all tokens"),
    ],
)
def test_refused(prompt, options, message):
    cluster = Cluster(2)
    with pytest.raises(ValueError) as refused:
        cluster.run(text, prompt, **options)
    assert str(refused.value) == "generate on rank 0 of 2: " + message
    assert cluster.meters.count().calls == 0, "before anything is sent"
