"""Days and dollars against what was published, and against what lecture notes have wrong."""

import pytest

from lib.costs.compute import six_n_d, step_flops
from lib.costs.money import TrainingRun, share_of_peak
from lib.costs.shapes import MODELS

A100, H100 = 312e12, 989.4e12


@pytest.mark.parametrize(
    ("model", "tokens", "devices", "achieved", "days"),
    [("gpt3-175b", 300e9, 1024, 140e12, 34), ("gpt-1t", 450e9, 3072, 163e12, 84)],
)
def test_narayanan_s_training_days(model, tokens, devices, achieved, days):
    # Their FLOP/s are those of the hardware, with every layer computed anew.
    flops = step_flops(MODELS[model], 1, 2048, "full") / 2048 * tokens
    assert TrainingRun(flops, devices, A100, achieved / A100).days == pytest.approx(days, rel=0.025)
    rule = six_n_d({"gpt3-175b": 175e9, "gpt-1t": 1e12}[model], tokens, recompute=True)
    assert rule / (devices * achieved * 86400) == pytest.approx(days, rel=0.02)


def test_llama_3_405b_used_a_third_of_the_peak_over_its_whole_run():
    flops = six_n_d(MODELS["llama-3-405b"].parameters, 15.6e12)
    assert flops == pytest.approx(3.8e25, rel=0.01)  # as the paper says
    assert share_of_peak(flops, 30.84e6 * 3600, 1, H100) == pytest.approx(0.346, abs=0.001)


def test_gpt3_on_256_a100s_takes_months_and_millions():
    run = TrainingRun(six_n_d(175e9, 300e9), 256, A100, 0.4, dollars_per_hour=3.0, watts=400)
    assert run.days == pytest.approx(114, rel=0.01)
    assert run.device_hours == pytest.approx(run.days * 24 * 256)
    assert run.dollars == pytest.approx(3 * run.device_hours)
    assert run.kilowatt_hours == pytest.approx(0.4 * run.device_hours)


def test_tokens_at_a_given_speed_are_hours():
    assert 300e9 / 1000 / 3600 == pytest.approx(83_333, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"flops": 0}, "flops=0 must be above 0"),
        ({"devices": -1}, "devices=-1"),
        ({"used": 1.2}, "40 % is 0.4"),
        ({"used": float("nan")}, "used=nan must be above 0"),
        ({"watts": -5.0}, "watts=-5.0 must be at least 0"),
    ],
)
def test_what_cannot_be_is_named(change, says):
    with pytest.raises(ValueError, match="TrainingRun") as caught:
        TrainingRun(**({"flops": 1e20, "devices": 8, "peak": A100, "used": 0.4} | change))
    assert says in str(caught.value)
