"""Formulas of the Llama against the engine: parameters, cache, meetings, FLOPs, and a step told by few layers."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from parallel.small_llama import CONFIG, SHARED, one_thread, tokens_of  # noqa: F401

from lib.costs.compute import step_flops
from lib.costs.gpt import gpt_synchronizations
from lib.costs.llama import (
    kv_cache_bytes,
    llama_parameters,
    llama_shape,
    llama_synchronizations,
    simulate_step,
)
from lib.costs.measure import measure
from lib.costs.shapes import MODELS
from lib.devices import Cluster, Hardware
from lib.parallel.attention.cache import KVCache
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.llama.config import LLAMAS
from lib.parallel.llama.model import Llama
from lib.parallel.llama.sequence import SequenceLlama

BATCH, LENGTH = 2, 12
CASES = [(config, size) for config in (CONFIG, SHARED) for size in (1, 2, 4, 12)]


@pytest.mark.parametrize(("config", "size"), CASES)
def test_parameters_of_each_device(config, size):
    held = Cluster(size).run(lambda group: sum(p.numel() for p in Llama(config, group).parameters()))
    assert held == [llama_parameters(config, size)] * size
    assert llama_parameters(config) == config.parameters == llama_shape(config).parameters


def test_shapes_are_those_of_the_costs():
    common = sorted(LLAMAS.keys() & MODELS.keys())
    assert len(common) >= 6
    for name in common:
        assert llama_shape(LLAMAS[name]) == MODELS[name], name


@pytest.mark.parametrize(("config", "size"), CASES)
def test_the_cache_of_each_device(config, size):
    def held(group):
        model, caches = Llama(config, group), [KVCache() for _ in range(config.layers)]
        with torch.no_grad():
            model(tokens_of(BATCH, LENGTH), caches=caches)
        return sum(cache.nbytes for cache in caches)

    assert Cluster(size).run(held) == [kv_cache_bytes(config, size, BATCH, LENGTH, 4)] * size


@pytest.mark.parametrize("make", [Llama, SequenceLlama], ids=["TP", "TP+SP"])
@pytest.mark.parametrize(("config", "size"), [(CONFIG, 4), (CONFIG, 12), (SHARED, 2), (SHARED, 4)])
def test_the_engine_counts_what_the_list_says(config, size, make):
    config = replace(config, layers=3)
    cluster = Cluster(size)

    def program(group):
        tokens = tokens_of(BATCH, LENGTH)
        make(config, group)(tokens, tokens).backward()

    cluster.run(program)
    expected = Counter()
    rows = llama_synchronizations(config, BATCH, LENGTH, size, make is SequenceLlama)
    for row in rows:
        expected[row.verb] += row.calls
    assert {verb: cluster.meters.count(0, verb).calls for verb in cluster.meters.verbs()} == expected
    sent = sum(cluster.meters.count(rank).bytes_sent for rank in range(size)) / size  # rings of uneven pieces
    assert sent == pytest.approx(4 * sum(row.sent(size) for row in rows))


def test_gpt2_has_the_same_large_meetings():
    gpt = GPTConfig(CONFIG.layers, CONFIG.hidden, CONFIG.heads, CONFIG.vocabulary)
    assert llama_synchronizations(CONFIG, BATCH, LENGTH, 2) == gpt_synchronizations(gpt, BATCH, LENGTH)


@pytest.mark.parametrize("size", [1, 4])
def test_flops_are_those_of_the_shape(size):
    config = replace(CONFIG, vocabulary=48)
    tokens = tokens_of(BATCH, LENGTH)
    found = measure(lambda group: Llama(config, group), tokens, tokens, devices=size)
    assert size * found.flops == step_flops(llama_shape(config), BATCH, LENGTH)


@pytest.mark.parametrize("recompute", [None, "full"])
@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["TP", "TP+SP"])
def test_two_short_models_tell_a_long_one(sequence_parallel, recompute):
    config = replace(LLAMAS["llama-3-8b"], layers=4, vocabulary=1024)
    options = {"sequence_parallel": sequence_parallel, "recompute": recompute}
    told = simulate_step(config, 2, 2048, Hardware.preset("H100"), **options)
    run = simulate_step(config, 2, 2048, Hardware.preset("H100"), **options, runs=None)
    assert told.seconds == pytest.approx(run.seconds, rel=1e-6)
    assert told.activations == pytest.approx(run.activations, rel=0.01)
    assert told.sent == pytest.approx(run.sent, rel=1e-9)
    assert told.parameters == llama_parameters(config, 2)
    assert 0.1 < told.mfu < 1


def test_eight_layers_of_the_widest_take_what_two_short_models_tell():
    """One device: on eight, it is the same program for each."""
    config, hardware = replace(LLAMAS["llama-3-70b"], layers=8), Hardware.preset("H100 measured")
    told, run = (simulate_step(config, 1, 8192, hardware, runs=runs) for runs in ((1, 2), None))
    assert told.seconds == pytest.approx(run.seconds, rel=1e-8)
    assert told.activations == run.activations


def test_the_clock_is_charged_for_the_flops_of_the_model():
    free = Hardware("free", 1e12, 1e30, 1e12, Hardware.preset("H100").inside)
    step = simulate_step(replace(CONFIG, vocabulary=48), 1, 16, free)
    assert step.mfu == pytest.approx(1, rel=0.05)


def test_heads_that_no_device_can_have_whole_are_named():
    uneven = replace(CONFIG, heads=12, kv_heads=6, head_size=2)
    for count in (llama_parameters, lambda config, devices: kv_cache_bytes(config, devices, 1, 8)):
        with pytest.raises(ValueError, match="6 heads of keys and values cannot be laid out over 4 devices"):
            count(uneven, 4)


def test_a_step_of_nothing():
    with pytest.raises(ValueError, match="simulate_step: sequence=0 must be an integer of at least 1"):
        simulate_step(CONFIG, 2, 0, Hardware.preset("H100"))
