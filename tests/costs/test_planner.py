"""The planner: what it tries, what it keeps, what it says; and that nonsense is refused with a way out."""

import re
from dataclasses import replace

import pytest

from lib.costs import planner
from lib.costs.machine import A100_RUNS, H100_RUNS
from lib.costs.plans_that_fit import (
    NothingFits,
    best_grids,
    candidates,
    judged,
    machine_named,
    plan_on,
    propose,
    rule_of_thumb,
)
from lib.costs.shapes import ModelShape
from lib.costs.why_this_plan import reasons
from lib.parallel.grid.config import ParallelConfig

SHAPE, MACHINE = ModelShape.preset("llama-3-8b"), machine_named("H100")
ASKED = (SHAPE, 16, 64, 4096, MACHINE)


def test_every_candidate_is_a_valid_grid_of_all_devices_and_the_batch():
    plans = list(candidates(SHAPE, 16, 64, 4096))
    assert len(plans) == len(set(plans)) > 50
    for plan in plans:
        assert plan.devices == 16
        assert plan.global_batch == 64
        grid = ParallelConfig(
            plan.data, plan.pipeline, tp=plan.tensor, micro_batches=plan.micro_batches, chunks=plan.interleaved,
            sequence_parallel=plan.sequence_parallel, zero=plan.zero, recompute=plan.recompute,
            uneven_stages=plan.split == "best",
        )  # fmt: skip
        assert grid.problems(16, SHAPE, 4096, 64) == []


def test_what_is_proposed_fits_and_is_sorted():
    found, rest = judged(*ASKED)
    assert all(one.room.total <= MACHINE.hardware.memory for one in found)
    assert all(one.room.total > MACHINE.hardware.memory for one in rest)
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)
    three = best_grids(found)
    assert len({one.grid for one in three}) == 3
    assert three[0] is found[0]


def test_reasons_are_what_the_planner_would_find():
    first = propose(*ASKED)[0]
    told = reasons(SHAPE, first, 64, MACHINE)
    by_tensor = {}
    for one in propose(*ASKED):
        by_tensor.setdefault(one.plan.tensor, one)
    sentence = next(one for one in told if one.startswith(f"TP {first.plan.tensor}: "))
    for tensor, percent in re.findall(r"TP (\d+) takes ([\d.]+)% longer", sentence):
        assert by_tensor[int(tensor)].seconds / first.seconds - 1 == pytest.approx(float(percent) / 100, abs=6e-4)
    assert re.search(r"TP \d+ takes", sentence)


def test_a_tensor_group_that_leaves_the_node_is_told_so():
    first = next(one for one in propose(*ASKED) if one.plan.tensor == 8)
    assert any("TP 16" in one and "leave the node" in one for one in reasons(SHAPE, first, 64, MACHINE))


def test_what_does_not_fit_is_told_in_bytes():
    large = ModelShape.preset("llama-3-70b")
    first = propose(large, 256, 256, 4096, MACHINE)[0]
    without = min(
        one.room.total
        for some in judged(large, 256, 256, 4096, MACHINE)
        for one in some
        if one.grid == first.grid and one.plan.zero == 0
    )
    told = f"ZeRO 0 does not fit, {(without - 80e9) / 1e9:,.1f} GB are short"
    assert any(told in one for one in reasons(large, first, 256, MACHINE))


def test_a_model_that_fits_nowhere_says_what_is_short():
    with pytest.raises(NothingFits) as raised:
        propose(ModelShape.preset("llama-3-70b"), 8, 8, 4096, MACHINE)
    nearest, text = raised.value.nearest, str(raised.value)
    assert f"{(nearest.room.total - 80e9) / 1e9:,.1f} GB are short" in text
    assert "optimizer" in text
    enough = raised.value.enough
    assert propose(ModelShape.preset("llama-3-70b"), enough, enough, 4096, MACHINE)
    with pytest.raises(NothingFits):
        propose(ModelShape.preset("llama-3-70b"), enough // 2, enough // 2, 4096, MACHINE)


@pytest.mark.parametrize(
    ("name", "devices", "grid"),
    [
        ("gpt2", 8, (8, 1, 1)),
        ("llama-3-8b", 4, (1, 4, 1)),
        ("llama-2-13b", 64, (1, 8, 8)),
        ("llama-3-70b", 256, (4, 8, 8)),
        ("gpt3-175b", 1024, (8, 8, 16)),
    ],
)
def test_the_rule_of_thumb(name, devices, grid):
    rule = rule_of_thumb(ModelShape.preset(name), devices)
    assert (rule["data"], rule["tensor"], rule["pipeline"]) == grid


def test_one_stage_takes_and_two_take():
    shape = ModelShape.preset("gpt3-175b")
    told = " ".join(reasons(shape, propose(shape, 1024, 2048, 2048, MACHINE)[0], 2048, MACHINE))
    assert re.search(r"[2-9] stages on each device take ", told)
    assert not re.search(r"stages on each device (takes|does|is) |(TP|PP|ZeRO|micro-batch) \d+ (take|do|are) ", told)


def test_the_command(capsys):
    assert planner.main(["--model", "llama-3-8b", "--devices", "16", "--batch", "64"]) == 0
    text = capsys.readouterr().out
    assert "plan 1" in text
    assert "rule" in text
    assert "Why the first:" in text
    assert "Its time: products" in text
    head, *rows = text.split("\n\n")[1].splitlines()
    plans = [line for line in rows if not line.startswith(" ")]  # a row that goes on below begins with spaces
    assert [line.split()[0] for line in plans] == ["plan", "plan", "plan", "rule"]
    ends = {"MFU": "%", "a step": "s", "device": "GB"}
    assert all(line[: head.index(of) + len(of)].endswith(unit) for line in plans for of, unit in ends.items())


@pytest.mark.parametrize(
    ("asked", "whole"),
    [
        ("--model llama-3-70b --devices 256", "micro-batch 1, 4 stages each, ZeRO 1"),
        ("--model gpt2 --devices 1024 --batch 1024", "micro-batch 4, 3 stages each,\n all recomputed"),
        ("--model gpt2 --devices 8 --batch 64 --memory 1.5GB", "ZeRO 1,\n all recomputed, does not fit"),
    ],
)
def test_the_answer_fits_a_terminal_and_says_all(asked, whole, capsys):
    assert planner.main(asked.split()) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) < 80
    assert whole in re.sub(" +", " ", text)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("--model llama-3-8b --devices 0", "devices=0 must be an integer of at least 1"),
        ("--model llama-3-8b --devices 8 --sequence 0", "sequence=0"),
        ("--model llama-3-8b --devices 8 --batch -1", "batch=-1 must be an integer of at least 1"),
        ("--model llama-9 --devices 8", "the models are gpt2"),
        ("--model llama-3-8b --devices 8 --hardware H300", "the presets are V100, A100, H100"),
        ("--model llama-3-8b --devices 8 --memory 80Gb", "80Gb"),
        ("--devices 8", "give --model, or all of --layers, --hidden and --heads"),
        ("--layers 4 --hidden 100 --heads 3 --devices 1", "cannot be divided into heads=3"),
        ("--model llama-3-405b --devices 8", "GB are short"),
        ("--model gpt3-175b --devices 1", "no plan fits on 1 device. The nearest"),
        ("--model mixtral-8x7b --devices 8", "knows no experts"),
        ("--model gpt2 --layers 4 --vocabulary 9", "--model has sizes of its own: leave out --layers, --vocabulary"),
        ("--model gpt2 --devices 1000000007", "devices=1,000,000,007 are more than it plans for, 1,048,576"),
        ("--model gpt2 --memory=", "'' is no number of bytes"),
        ("--model gpt2 --devices 2 --inside=", "'' is no number of bytes"),
        ("--model gpt2 --devices 2 --between 0GB", "'0GB' is no number of bytes above 0"),
    ],
)
def test_nonsense_is_refused_by_name(asked, says, capsys):
    assert planner.main(asked.split()) == 2
    assert says in capsys.readouterr().err


def test_sizes_memory_and_links_can_be_given(capsys):
    asked = "--layers 8 --hidden 1024 --heads 16 --devices 4 --batch 8 --sequence 512 --hardware A100 --memory 40GB"
    assert planner.main([*asked.split(), "--inside", "50GB", "--between", "3GB", "--per-node", "4"]) == 0
    assert "on 4 x A100, 8 texts of 512 tokens" in capsys.readouterr().out


def test_a_model_of_sizes_has_a_position_for_every_token_that_is_asked_for(capsys):
    asked = "--layers 2 --hidden 128 --heads 4 --devices 2 --batch 2 --sequence 4096"
    assert planner.main(asked.split()) == 0
    assert "2 texts of 4096 tokens" in capsys.readouterr().out


def test_nodes_without_a_link_between_them_are_named():
    apart = replace(MACHINE, hardware=replace(MACHINE.hardware, between=None))
    with pytest.raises(ValueError, match="has no link between rank 7"):
        propose(SHAPE, 16, 64, 4096, apart)


def test_axes_that_the_model_of_time_does_not_know():
    with pytest.raises(ValueError, match="cp=2, ep=1: the model of time knows"):
        plan_on(ParallelConfig(cp=2), 4096)


def test_machines_by_name():
    assert machine_named("A100") is A100_RUNS
    assert machine_named("H100") == replace(H100_RUNS, stall=0.0)
    assert machine_named("V100").products == A100_RUNS.products
    assert machine_named("B200").products == H100_RUNS.products
