"""Numbers of another size: twice the bytes of a number are twice the bytes that travel, and twice the least work."""

from functools import partial

import pytest

from lib.costs.compute import layer_work, turning_batch
from lib.costs.context import attention_bytes, tokens_to_hide
from lib.costs.experts import MIXTRAL_8X7B, least_inner, rows_to_keep_busy
from lib.costs.grid import axis_traffic
from lib.costs.llama import kv_cache_bytes
from lib.costs.pipeline import pipeline_bytes
from lib.costs.scaling import hidden_to_feed_tensor, layers_to_feed_pipeline, tokens_to_hide_gradients
from lib.costs.shapes import ModelShape
from lib.devices.hardware import H100
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.grid.config import ParallelConfig
from lib.parallel.llama.config import LlamaConfig
from lib.parallel.pipeline.schedules import gpipe

SHAPE, LINK = ModelShape.preset("llama-3-8b"), H100.between
GROW = {
    "bytes of a layer": lambda itemsize: layer_work(SHAPE, 2, 16, itemsize=itemsize)[1].moved,
    "the turning batch": partial(turning_batch, H100),
    "a ring's keys and values": lambda itemsize: attention_bytes(SHAPE, 64, 4, "ring", itemsize)[1],
    "tokens of a ring": lambda itemsize: tokens_to_hide(H100, LINK, SHAPE, itemsize=itemsize),
    "rows to experts": lambda itemsize: MIXTRAL_8X7B.expert.all_to_all_bytes(64, 4, itemsize),
    "an expert's inner size": lambda itemsize: least_inner(H100, LINK, 4, itemsize=itemsize),
    "rows of an expert": partial(rows_to_keep_busy, H100),
    "a grid's gradients": lambda itemsize: (
        axis_traffic(ParallelConfig(dp=2), GPTConfig(2, 32, 4), 4, 8, itemsize)["dp"].size
    ),
    "a cache": partial(
        kv_cache_bytes, LlamaConfig(layers=2, hidden=32, heads=4, kv_heads=2, inner=64, vocabulary=100), 2, 3, 8
    ),
    "a pipeline's messages": lambda itemsize: pipeline_bytes(gpipe(2, 2), 1, 8, 32, itemsize)[0],
    "tokens of data parallelism": partial(tokens_to_hide_gradients, H100, LINK, 4),
    "the hidden size of tensor parallelism": lambda itemsize: hidden_to_feed_tensor(H100, LINK, 4, itemsize=itemsize),
    "layers of a stage": lambda itemsize: layers_to_feed_pipeline(H100, LINK, 4096, itemsize),
}


@pytest.mark.parametrize("what", GROW)
def test_twice_the_bytes_of_a_number_are_twice_as_much(what):
    assert GROW[what](4) == pytest.approx(2 * GROW[what](2))
    assert GROW[what](2) > 0


def test_a_gate_is_a_third_matrix():
    """More arithmetic for the same rows: the inner size may be smaller."""
    assert least_inner(H100, LINK, 4, gated=False) == pytest.approx(least_inner(H100, LINK, 4) * 3 / 2)
