"""Formulas against the engine: parameters, synchronizations, FLOPs, activations; GPT-3 on 8 devices."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from parallel.small_gpt import CONFIG, COUNTS, one_thread, tokens_of  # noqa: F401
from parallel.variants import variant
from torch.utils.flop_counter import FlopCounterMode

from lib.costs.gpt import (
    Synchronization,
    gpt_flops,
    gpt_parameters,
    gpt_synchronizations,
)
from lib.costs.measure import measure
from lib.costs.saved_tensors import saved_activations
from lib.devices import Cluster
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT

BATCH, LENGTH = 2, 12
SEQUENCE = pytest.mark.parametrize("sequence_parallel", [False, True], ids=["TP", "TP+SP"])


@pytest.mark.parametrize("size", COUNTS)
def test_parameters_of_each_device(size):
    held = Cluster(size).run(lambda group: sum(p.numel() for p in GPT(CONFIG, group).parameters()))
    assert held == [gpt_parameters(CONFIG, size)] * size
    assert gpt_parameters(CONFIG) == CONFIG.parameters


def metered(size, sequence_parallel, backward, layers=2):
    """Calls and bytes by verb; asks that all devices have made the same calls."""
    cluster = Cluster(size)

    def program(group):
        model = variant(GPT, sequence_parallel)(replace(CONFIG, layers=layers), group)
        tokens = tokens_of(BATCH, LENGTH)
        if backward:
            model(tokens, tokens).backward()
        else:
            with torch.no_grad():
                model(tokens, tokens)

    cluster.run(program)
    calls = [{verb: cluster.meters.count(r, verb).calls for verb in cluster.meters.verbs()} for r in range(size)]
    assert all(count == calls[0] for count in calls)
    return calls[0], cluster.meters.count(0).bytes_sent


def listed(sequence_parallel, directions, layers=2):
    rows = gpt_synchronizations(replace(CONFIG, layers=layers), BATCH, LENGTH, sequence_parallel)
    return [row for row in rows if row.direction in directions]


@SEQUENCE
@pytest.mark.parametrize("directions", [["forward"], ["forward", "backward"]], ids=["forward", "both"])
@pytest.mark.parametrize(("size", "layers"), [(2, 2), (4, 3)])
def test_the_engine_counts_what_the_list_says(size, layers, directions, sequence_parallel):
    calls, sent = metered(size, sequence_parallel, "backward" in directions, layers)
    rows = listed(sequence_parallel, directions, layers)
    expected = Counter()
    for row in rows:
        expected[row.verb] += row.calls
    assert calls == expected
    assert sent == 4 * sum(row.sent(size) for row in rows)


def test_twelve_layers_make_24_all_reduces_and_embedding_and_loss_the_rest():
    calls, _ = metered(2, False, backward=False, layers=12)
    assert calls == {"all_reduce": 24 + 1 + 3}
    calls, _ = metered(2, False, backward=True, layers=12)
    assert calls == {"all_reduce": 24 + 1 + 3 + 24 + 1}


def test_one_device_meets_nobody_and_sends_nothing():
    assert all(row.sent(1) == 0 for row in gpt_synchronizations(CONFIG, BATCH, LENGTH))
    assert metered(1, False, backward=True)[1] == 0


def test_an_all_reduce_is_two_trips_and_the_others_one():
    sent = {verb: Synchronization("x", "forward", verb, 3, 100).sent(4) for verb in ("all_reduce", "all_gather")}
    assert sent == {"all_reduce": 3 * 2 * 75, "all_gather": 3 * 75}


def gpt3(layers, dropout=0.1):
    return replace(GPTConfig.preset("gpt3-175b"), layers=layers, dropout=dropout)


def measure_step(config, devices, batch=1, sequence_parallel=False, recompute=None):
    """Forward, loss and backward of `batch` texts of full length."""
    tokens = torch.empty(batch, config.positions, dtype=torch.long, device="meta")
    make = variant(GPT, sequence_parallel)
    return measure(lambda group: make(config, group, recompute), tokens, tokens, devices=devices)


def saved_bytes(config, devices, sequence_parallel):
    """Korthikanti et al. 2022, table 2, for each layer; and what they leave out or have elsewhere.

    Per layer: two numbers of float32 per token for each of two LayerNorms. At the ends: the mask of the embedding's
    dropout; the inputs of the last LayerNorm, with its two numbers, and of the head; the softmax of the logits; 18
    bytes per token of the embedding and the loss: two numbers of rows, two masks.
    """
    s, h, t = config.positions, config.hidden, devices
    cut = t if sequence_parallel else 1  # what is replicated without sequence parallelism
    layer = s * h * (10 / cut + 24 / t + 5 * config.heads * s / (h * t)) + 2 * 8 * s / cut
    ends = s * h * (1 + 2 + 2) / cut + 8 * s / cut + 2 * s * -(-config.vocabulary // t) + 18 * s
    return config.layers * layer + ends


def figures(config):
    found = measure_step(config, 8)
    assert found.calls.keys() == {"all_reduce"}
    return torch.tensor([found.parameters, found.flops, found.activations, found.bytes_sent, found.calls["all_reduce"]])


def test_gpt3_with_all_its_96_layers_on_8_devices():
    """Measured with 1, 2 and 4 layers. Each further one adds the same, as the 4 show, and so do those up to 96."""
    config = gpt3(96)
    one, two, four = (figures(gpt3(layers)) for layers in (1, 2, 4))
    assert (four == one + 3 * (two - one)).all()
    parameters, flops, activations, bytes_sent, calls = (one + 95 * (two - one)).tolist()
    assert parameters == gpt_parameters(config, 8) == 21_853_777_920
    assert flops == gpt_flops(config, 1, 2048, devices=8)
    s, h, layers, vocabulary = 2048, 12288, 96, 8 * 6283
    expected = 72 * s * layers * h**2 * (1 + s / (6 * h) + vocabulary / (12 * layers * h))
    assert abs(flops * 8 / expected - 1) < 1e-12
    assert activations == saved_bytes(config, 8, sequence_parallel=False)
    assert calls == 2 * 192 + 1 + 3 + 1
    in_float32 = 2 * 2 * s * 2 * 7 / 8  # two numbers per token of the loss take 2 bytes more each
    assert bytes_sent == 2 * sum(x.sent(8) for x in gpt_synchronizations(config, 1, 2048)) + in_float32


@SEQUENCE
def test_with_full_recomputation_a_third_more_but_not_for_the_head(sequence_parallel):
    config = gpt3(2)
    found = measure_step(config, 8, sequence_parallel=sequence_parallel, recompute="full")
    assert found.flops == gpt_flops(config, 1, 2048, recompute=True, devices=8)
    s, h, layers, vocabulary = 2048, 12288, 2, 8 * 6283
    expected = 96 * s * layers * h**2 * (1 + s / (6 * h) + vocabulary / (16 * layers * h))
    assert abs(found.flops * 8 / expected - 1) < 1e-12
    ends = 2 * saved_bytes(gpt3(1), 8, sequence_parallel) - saved_bytes(gpt3(2), 8, sequence_parallel)
    inputs = 2 * s * h // (8 if sequence_parallel else 1)  # all that is kept of a layer
    assert found.activations == ends + layers * inputs


def test_without_dropout_pytorch_does_not_compute_the_last_product_anew():
    config = gpt3(2, dropout=0.0)
    flops = measure_step(config, 8, recompute="full").flops
    assert gpt_flops(config, 1, 2048, recompute=True, devices=8) - flops == 2 * 8 * 2048 * 12288**2 // 8


def test_sequence_parallelism_saves_what_is_replicated():
    config = gpt3(2)
    found = measure_step(config, 8, sequence_parallel=True)
    assert found.flops == gpt_flops(config, 1, 2048, devices=8)
    assert found.activations == saved_bytes(config, 8, sequence_parallel=True)


@SEQUENCE
@pytest.mark.parametrize("recompute", [None, "selective", "full"])
def test_a_step_is_measured_as_a_run_with_data_does_it(sequence_parallel, recompute):
    config, batch, cluster = replace(CONFIG, layers=1, dropout=0.1), 2, Cluster(3)
    tokens = tokens_of(batch, CONFIG.positions)

    def program(group):
        model = variant(GPT, sequence_parallel)(config, group, recompute).bfloat16()
        with FlopCounterMode(display=False) if group.rank == 0 else nullcontext() as counter:
            model(tokens, tokens).backward()
        return counter and counter.get_total_flops()

    def kept(group):  # on meta: LayerNorm keeps its two numbers in 32 bits there, as GPUs do, and in 16 on a CPU
        with torch.device("meta"):
            model = variant(GPT, sequence_parallel)(config, group, recompute).bfloat16()
        return sum(block.size for block in saved_activations(model, tokens.to("meta"), tokens.to("meta")))

    found = measure_step(config, 3, batch, sequence_parallel, recompute)
    assert found.flops == cluster.run(program)[0]
    assert found.calls == {verb: cluster.meters.count(0, verb).calls for verb in cluster.meters.verbs()}
    assert found.bytes_sent == cluster.meters.count(0).bytes_sent
    assert found.activations == Cluster(3).run(kept)[0]


def test_twice_the_texts_are_twice_the_work_and_the_same_weights():
    one, two = (measure_step(replace(CONFIG, dropout=0.1), 4, batch, recompute="selective") for batch in (1, 2))
    assert (two.flops, two.bytes_sent, two.parameters) == (2 * one.flops, 2 * one.bytes_sent, one.parameters)
    assert two.calls == one.calls


def test_heads_that_no_device_can_have_whole_are_named():
    for count in (
        lambda devices: gpt_parameters(CONFIG, devices),
        lambda devices: gpt_flops(CONFIG, 1, 8, False, devices),
    ):
        with pytest.raises(ValueError, match="12 heads cannot be split over 5 devices"):
            count(5)
