"""The rules of a grid: every broken one is named at once, and what is named keeps it."""

import re
from itertools import product

import pytest

from lib.costs.shapes import ModelShape
from lib.parallel.experts.model import ExpertGPTConfig
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.grid.config import ParallelConfig, valid_configs
from lib.parallel.llama.config import LlamaConfig

SMALL = GPTConfig(layers=8, hidden=48, heads=12, vocabulary=50, positions=48)


def test_all_broken_rules_are_told_at_once():
    config = ParallelConfig(dp=3, pp=3, tp=5, cp=2, ep=4, micro_batches=4, chunks=2, sequence_parallel=True)
    with pytest.raises(ValueError) as error:
        config.validate(96, ExpertGPTConfig(8, 48, 12, vocabulary=4, positions=48, experts=6), batch=16)
    told = str(error.value)
    for rule in ("devices", "heads", "MLP", "vocabulary", "layers", "micro-batches", "batch", "sequence", "experts"):
        assert f"\n  {rule}: " in told, rule
    assert told.count("\n  experts: ") == 2  # neither the experts nor dp
    assert told.startswith("ParallelConfig(dp 3 x pp 3 x cp 2 x tp 5, ep 4,")
    assert "10 rules are broken" in told


@pytest.mark.parametrize(
    ("broken", "devices", "told"),
    [
        ({"tp": 8}, 8, "tp=8 does not divide 12 heads; nearest tp: 6 or 12"),
        ({"pp": 3}, 3, "= 3 stages do not divide 8 layers; nearest: 2 or 4 stages"),
        ({"pp": 9}, 9, "= 9 stages for 8 layers, some would have none; take at most 8"),
        ({"pp": 2, "chunks": 2, "micro_batches": 5}, 2, "which does not divide 5; nearest: 4 or 6"),
        ({"chunks": 2}, 1, "chunks=2 on one pipeline device change nothing"),
        ({"cp": 5}, 5, "2 cp stretches of equal length (cp=5, tp=1); nearest length: 40 or 50"),
        ({"dp": 2, "ep": 2}, 2, "ep=2 does not divide 1 expert; nearest ep: 1"),
        ({"pp": 2, "zero": 2}, 2, "Take zero=1, or pp=1"),
        ({"dp": 2, "tp": 2}, 8, "= 4 devices, not 8; take dp=4 or pp=2 or cp=2 or tp=4"),
        ({"dp": 3, "tp": 3}, 8, "pp x cp x tp = 3 devices, so the count must be a multiple of 3: 6 or 9"),
    ],
)
def test_each_rule_names_the_nearest_values(broken, devices, told):
    problems = ParallelConfig(**broken).problems(devices, SMALL)
    assert len(problems) == 1
    assert told in problems[0]


def test_heads_of_keys_and_values():
    llama = LlamaConfig.preset("llama-3-8b")  # 32 heads, 8 of keys and values
    assert not ParallelConfig(tp=16).problems(16, llama, sequence=8192)
    odd = ModelShape.llama(4, 96, 24, 6, 96, 100)
    assert "nearest tp: 3 or 6" in ParallelConfig(tp=4).problems(4, odd)[0]


def test_the_batch():
    config = ParallelConfig(dp=4, micro_batches=3)
    assert not config.problems(4, SMALL, batch=24)
    assert "12 equal pieces; nearest batch: 12 or 24" in config.problems(4, SMALL, batch=16)[0]


def test_what_is_no_size_is_refused_by_name_and_all_of_it():
    with pytest.raises(ValueError, match=r"dp=0 .*pp=True .*tp=-2 .*zero=4 .*recompute='half'"):
        ParallelConfig(dp=0, tp=-2, pp=True, zero=4, recompute="half")
    with pytest.raises(ValueError, match=r"devices=0 .*\n.*batch=1.5 must"):
        ParallelConfig().validate(0, SMALL, batch=1.5)
    with pytest.raises(ValueError, match="there is no pipeline; a ParallelConfig has dp, pp"):
        list(valid_configs(4, SMALL, pipeline=(2,)))


@pytest.mark.parametrize("devices", [1, 6, 16])
def test_the_enumeration_is_that_of_trying_everything(devices):
    sizes = range(1, devices + 1)
    tried = {
        config
        for dp, pp, cp, tp in product(sizes, repeat=4)
        if dp * pp * cp * tp == devices
        for chunks in (1, 2)
        if not (config := ParallelConfig(dp, pp, cp, tp, micro_batches=pp, chunks=chunks)).problems(devices, SMALL)
    }
    found = list(valid_configs(devices, SMALL, chunks=(1, 2)))
    assert set(found) == tried
    assert len(found) == len(tried) > 0


def test_what_is_named_is_valid():
    """Of every broken divisor rule of a grid of 16, the nearest values keep that rule."""
    for tp in range(1, 17):
        for problem in ParallelConfig(tp=tp).problems(tp, SMALL):
            rule, nearest = problem.split(":")[0], problem.split("nearest tp: ")[-1]
            for value in map(int, re.findall(r"\d+", nearest)):
                again = ParallelConfig(tp=value).problems(value, SMALL)
                assert rule not in [other.split(":")[0] for other in again], (problem, again)
