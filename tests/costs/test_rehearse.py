"""The book's clock as a predictor: a layer that is run, and a schedule around it, against published runs."""

from dataclasses import replace

import pytest

from lib.costs.machine import A100_RUNS
from lib.costs.rehearse import rehearsed_layer, rehearsed_step
from lib.costs.runs import a100

HARDWARE = replace(A100_RUNS.hardware, efficiency=0.69)
RUNS = {f"{run.table} {run.name}": run for run in a100()}


NAMES = ["K22 22B, full", "K22 22B, selective", "ZB 6.2B, 1f1b, m=24", "ZB 6.2B, zb-h1, m=32"]


# In the interleaved run, 30 layers lie in 32 stages: the first and the last have none.
@pytest.mark.parametrize("name", [*NAMES, "ZB 6.2B, interleaved, m=32"])
def test_within_eight_percent(name):
    run = RUNS[name]
    assert rehearsed_step(run.shape, run.plan, HARDWARE) == pytest.approx(run.seconds, rel=0.08)


def test_a_layer_is_the_five_that_were_published():
    run = RUNS["K22 22B, full"]  # Korthikanti et al. 2022, table 4, milliseconds
    for recompute, forward, backward in ((None, 7.7, 11.9), ("full", 7.7, 19.5)):
        layer = rehearsed_layer(run.shape, replace(run.plan, recompute=recompute), HARDWARE)
        assert layer.forward * 1e3 == pytest.approx(forward, rel=0.1)
        assert (layer.input + layer.weight) * 1e3 == pytest.approx(backward, rel=0.2)


def test_replicas_add_their_gradients_and_nothing_else():
    run = RUNS["ZB 6.2B, 1f1b, m=24"]
    one, two = (rehearsed_step(run.shape, replace(run.plan, data=d), HARDWARE) for d in (1, 2))
    assert 0 < two - one < 0.1 * one
