"""Bubbles, bytes and FLOPs of a pipeline: the formulas, and what Qi et al. 2023 measured."""

import math
import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lib import Later, Times, bubble, gpipe, interleaved, one_f_one_b, pipeline_bytes, split_flops, zb_v


def test_both_bubbles_are_named():
    found = bubble(gpipe(4, 8))
    assert (found.ideal, found.total) == (24, 33)
    assert (found.of_ideal, found.of_total, found.efficiency) == (9 / 24, 9 / 33, 24 / 33)


def test_four_stages_are_57_to_91_percent_efficient():
    """Not 25, 62.5, 81 and 91, as is often written: 1 - (p - 1)/m mixes the two fractions."""
    found = [bubble(gpipe(4, m)).efficiency for m in (4, 8, 16, 32)]
    assert found == pytest.approx([4 / 7, 8 / 11, 16 / 19, 32 / 35])


def test_the_most_work_of_a_device_is_the_ideal():
    assert bubble(gpipe(2, 2), Times(forward=(1, 4), input=0, weight=0)).ideal == 8


def test_bytes():
    one = 2 * 3 * 4 * 2  # of a boundary, a micro-batch and a direction
    assert pipeline_bytes(one_f_one_b(3, 5), 2, 3, 4) == [5 * one, 10 * one, 5 * one]
    assert pipeline_bytes(interleaved(2, 4, 3), 2, 3, 4) == [5 * 4 * one] * 2  # five boundaries, a direction each
    assert pipeline_bytes(zb_v(2, 4), 2, 3, 4) == [2 * 4 * one] * 2  # of three boundaries, one lies within a device
    assert pipeline_bytes(one_f_one_b(3, 5), 2, 3, 4, scatter=4) == [5 * one // 4, 10 * one // 4, 5 * one // 4]
    with pytest.raises(ValueError, match="4 cannot be cut over scatter=3"):
        pipeline_bytes(one_f_one_b(3, 5), 2, 3, 4, scatter=3)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("pipeline_bytes: batch=0 must be", lambda: pipeline_bytes(gpipe(2, 2), 0, 3, 4)),
        ("pipeline_bytes: scatter=0 must be", lambda: pipeline_bytes(gpipe(2, 2), 2, 3, 4, scatter=0)),
        ("split_flops: sequence=-1 must be", lambda: split_flops(1, -1, 8)),
        ("Times: forward=-1 must be at least 0 seconds", lambda: Times(forward=-1)),
        ("Times: weight=(1, nan) must be at least 0 seconds, and finite", lambda: Times(weight=(1, math.nan))),
        ("Times: message=inf must be at least 0 seconds, and finite", lambda: Times(message=math.inf)),
        ("Times.cut: chunks=0 must be an integer", lambda: Times().cut(0)),
    ],
)
def test_what_is_no_time_and_no_size(words, call):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_flops_of_the_halves_are_what_they_compute():
    batch, tokens, hidden = 2, 6, 8
    layers = nn.ModuleList(
        [nn.Linear(hidden, n * hidden, bias=False) for n in (3, 1, 4)] + [nn.Linear(4 * hidden, hidden)]
    )

    def layer(x):
        q, k, v = layers[0](x).chunk(3, -1)
        x = layers[1]((q @ k.mT).softmax(-1) @ v)
        return layers[3](layers[2](x))

    def counted(work):
        with FlopCounterMode(display=False) as counter:
            result = work()
        return counter.get_total_flops(), result

    later, x = Later(), torch.randn(batch, tokens, hidden, requires_grad=True)
    with later.entered("key"):
        forward, y = counted(lambda: layer(x))
        inputs, _ = counted(lambda: y.sum().backward())
    assert all(linear.weight.grad is None for linear in layers)
    weights, _ = counted(lambda: later.run("key"))
    assert (forward, inputs, weights) == split_flops(batch, tokens, hidden)
    assert all(linear.weight.grad is not None for linear in layers)
