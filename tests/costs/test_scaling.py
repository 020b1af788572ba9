"""Efficiencies of published series, two laws, and the inequalities: each of them met by the virtual clock."""

import pytest
import torch
from torch import nn

from lib import Cluster, Hardware, Link, ParallelMLP
from lib.costs import scaling

STRONG = {1: 100, 2: 52, 4: 27, 8: 15, 16: 9, 32: 6}
LARGE = {1: 1000, 2: 520, 4: 270, 8: 145, 16: 80, 32: 50}
IDEAL = Hardware("ideal", 400e12, 1e30, 80e9, Link(0, 200e9))


def test_the_series_of_the_lecture():
    assert [round(100 * e) for e in scaling.strong_efficiency(STRONG).values()] == [100, 96, 93, 83, 69, 52]
    assert round(scaling.strong_efficiency(LARGE)[32], 3) == 0.625
    assert scaling.weak_efficiency({4: 1000, 32: 1300}) == {4: 1.0, 32: pytest.approx(1000 / 1300)}
    assert scaling.strong_efficiency({4: 30, 8: 15}) == {4: 1.0, 8: 1.0}


@pytest.mark.parametrize("serial", [0.0, 0.03, 0.5, 1.0])
def test_two_laws_are_one_law_of_two_shares(serial):
    """Gustafson's share is of the time on n devices. As a share of the time on one, it gives Amdahl the same."""
    n = 32
    speedup = scaling.gustafson(serial, n)
    assert scaling.amdahl(serial / speedup, n) == pytest.approx(speedup)
    assert scaling.serial_share(n, scaling.amdahl(serial, n) / n) == pytest.approx(serial)


def on_clock(program, size):
    cluster = Cluster(4, hardware=IDEAL)
    cluster.run(program, size)
    part = cluster.trace.during("here")
    return part.total(0, "communication") / part.total(0, "compute")


def test_the_clock_meets_the_hidden_size_of_tensor_parallelism():
    def mlp(group, hidden):
        with torch.device("meta"):
            layer, x = ParallelMLP(hidden, group).bfloat16(), torch.empty(2, 64, hidden, dtype=torch.bfloat16)
        with group.span("here"):
            layer(x)

    hidden = scaling.hidden_to_feed_tensor(IDEAL, IDEAL.inside, 4, matrices=8)
    assert hidden == pytest.approx(1500)
    assert on_clock(mlp, 1500) == pytest.approx(1, rel=1e-6)
    assert on_clock(mlp, 3000) == pytest.approx(1 / 2, rel=1e-6)


def test_the_clock_meets_the_tokens_of_data_parallelism():
    def gradients(group, tokens):
        with torch.device("meta"):
            layer, x = nn.Linear(256, 512, bias=False), torch.empty(tokens, 256, requires_grad=True)
        y = layer(x)
        with group.span("here"):
            y.backward(torch.empty_like(y))
            group.all_reduce(layer.weight.grad)

    tokens = scaling.tokens_to_hide_gradients(IDEAL, IDEAL.inside, 4)
    assert tokens == pytest.approx(3000)
    assert on_clock(gradients, 3000) == pytest.approx(1, rel=1e-6)


def test_the_clock_meets_the_layers_of_a_pipeline():
    hidden, tokens = 64, 32
    layers = scaling.layers_to_feed_pipeline(IDEAL, IDEAL.inside, hidden)

    def stage(group):
        x = torch.empty(tokens, hidden, dtype=torch.bfloat16, device="meta")
        if group.rank == 0:
            for _ in range(12):  # the products of one layer: 12 h² weights
                x = x @ torch.empty(hidden, hidden, dtype=torch.bfloat16, device="meta")
            group.send(x, 1)
        else:
            group.recv(0)

    cluster = Cluster(2, hardware=IDEAL)
    cluster.run(stage)
    work, talk = (cluster.trace.total(0, kind) for kind in ("compute", "communication"))
    assert talk / work == pytest.approx(layers, rel=1e-6)


def test_micro_batches_for_an_efficiency():
    assert scaling.micro_batches_for(8, 0.9) == pytest.approx(63)  # 63 / (63 + 7)
    assert scaling.micro_batches_for(8, 0.9, interleaved=3) == pytest.approx(21)


def test_a_batch_at_the_critical_size_takes_twice_the_steps_and_twice_the_texts():
    assert scaling.steps_needed(10, 10, fewest=7) == 14
    assert scaling.texts_needed(10, 10, fewest=7) == 14
    assert scaling.steps_needed(1e9, 10, fewest=7) == pytest.approx(7)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: scaling.strong_efficiency({}), "no times are given"),
        (lambda: scaling.strong_efficiency({0: 1.0}), "both must be above 0"),
        (lambda: scaling.weak_efficiency({1: 0.0}), "both must be above 0"),
        (lambda: scaling.amdahl(1.5, 2), "between 0 and 1"),
        (lambda: scaling.gustafson(-0.1, 2), "between 0 and 1"),
        (lambda: scaling.serial_share(1, 1.0), "says nothing about scaling"),
        (lambda: scaling.micro_batches_for(4, 1.0), "a bubble never vanishes"),
        (lambda: scaling.steps_needed(0, 1), "must be above 0"),
    ],
)
def test_what_cannot_be_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
