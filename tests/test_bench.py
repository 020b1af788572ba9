"""The bench works: every row appears, and the numbers can be true. Speeds are for `make bench` on a quiet machine."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench.block import dense_block, device_block
from bench.context import dense_attention, device_attention
from bench.gpt import dense_gpt, device_gpt
from bench.layers import WORKS, dense_work, device_work
from bench.local_tensor import local_tensors, work_of_all
from bench.plain import PlainBlock, PlainMLP
from bench.plan import QUICK, Reading, spent, summary
from bench.rounds import interleaved, step
from bench.tables import tables

from lib import Cluster, CutTokens

BENCH = Path(__file__).parent / "bench.py"


@pytest.fixture(scope="module")
def found():
    run = subprocess.run([sys.executable, BENCH, "--quick", "--json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_every_layer_is_measured(found):
    threads = sorted({found["machine"]["threads"], 1, 2})
    measured = {(r["work"], r["backward"], r["threads"], r["how"], r["devices"]) for r in found["layers"]}
    both = (False, True)
    wanted = {(w, b, t, "dense", 1) for w in WORKS for b in both for t in threads}
    wanted |= {(w, b, t, "simulated", n) for w in WORKS for b in both for t in threads for n in QUICK.devices}
    wanted |= {("MLP", b, t, "fresh run per step", n) for b in both for t in threads for n in QUICK.devices}
    default = found["machine"]["threads"]
    wanted |= {("MLP", b, default, "processes", n) for b in both for n in QUICK.processes}
    assert measured == wanted


def test_the_block_is_measured_in_all_ways(found):
    measured = {(r["work"], r["backward"], r["threads"], r["how"], r["devices"]) for r in found["block"]}
    ways = [("dense", 1)]
    ways += [(how, n) for how in ("TP", "TP + SP") for n in QUICK.in_block]
    ways += [(f"{how}, in a row", n) for how in ("TP", "TP + SP") for n in QUICK.in_block]
    ways += [("LocalTensor, TP", n) for n in QUICK.local_tensor]
    wanted = {("GPT-2 block", b, t, how, n) for b in (False, True) for t in (1, 2) for how, n in ways}
    wanted |= {("GPT-2 block", b, 2, "processes, TP", n) for b in (False, True) for n in QUICK.processes}
    assert measured == wanted


def test_experts_are_measured(found):
    measured = {(r["work"], r["backward"], r["threads"], r["how"], r["devices"]) for r in found["experts"]}
    ways = (("dense", 1), ("simulated", 8))
    assert measured == {("experts", b, t, how, n) for b in (False, True) for t in (1, 2) for how, n in ways}


def test_all_of_gpt2_is_measured(found):
    measured = {(r["work"], r["backward"], r["threads"], r["how"], r["devices"]) for r in found["gpt"]}
    ways = [("dense", 1), *(("TP", n) for n in QUICK.in_gpt)]
    assert measured == {("GPT-2 small", b, t, how, n) for b in (False, True) for t in (1, 2) for how, n in ways}
    assert [row["devices"] for row in found["inference"]] == [0, *QUICK.in_gpt]
    assert all(row["peak"] >= 0 for row in found["inference"])


def test_the_ring_is_measured(found):
    measured = {(r["work"], r["backward"], r["threads"], r["how"], r["devices"]) for r in found["context"]}
    ways = [
        ("dense", 1),
        *((f"ring, {order}", n) for order in ("zigzag", "striped", "contiguous") for n in QUICK.in_ring),
    ]
    assert measured == {("attention", b, 1, how, n) for b in (False, True) for how, n in ways}


def test_ratios_can_be_true(found):
    for row in found["layers"] + found["block"] + found["gpt"] + found["context"]:
        ratio = row["ratio"]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
        assert ratio["median"] == 1 or row["how"] != "dense"
        assert row["milliseconds"]["low"] > 0
        assert row["cpu ratio"]["low"] > 0
        assert row["faults"]["low"] >= 0


def test_every_collective_is_measured(found):
    measured = {(row["what"], row["devices"]): row["microseconds"] for row in found["collectives"]}
    names = ("bare hand-over", "all_reduce", "barrier", "start of a run")
    assert measured.keys() == {(what, size) for what in names for size in QUICK.clusters}
    assert all(0 < value["low"] <= value["median"] <= value["high"] for value in measured.values())


def test_meters_and_clock_are_measured(found):
    assert len(found["clock"]) == 7
    assert [row["target"] for row in found["clock"]] == [1.05, 1.0, None, 1.0, 30, 60, None]
    assert all(0 < row["values"]["low"] <= row["values"]["high"] for row in found["clock"])


def test_guests_are_measured_beside_the_group_of_threads(found):
    assert [row["target"] for row in found["guests"]] == [None, None, 1.5, 150]
    assert all(row["values"]["low"] > 0 for row in found["guests"])


def test_meters_count_again_after_the_bench():
    from bench.clock import metering

    metering(QUICK)
    cluster = Cluster(2)
    cluster.run(lambda group: group.barrier())
    assert cluster.meters.count(0).calls == 1


def test_memory_is_measured(found):
    assert [row["devices"] for row in found["memory"]] == [0, *QUICK.in_memory]
    assert all(row["peak"] >= 0 for row in found["memory"])
    assert all(row["all shared"] for row in found["memory"][1:])


def test_tables_show_target_and_reached(found):
    text = re.sub(" +", " ", tables(found))
    assert "| target | wanted | reached | met | cpu time / dense |" in text
    for row in (
        "MLP forward + backward, 4 devices, 1 thread | <= 1.15 x dense",
        "GPT-2 block TP forward, 4 devices, 1 thread | <= 1.15 x dense",
        "GPT-2 block TP forward + backward, 4 devices, 2 threads | <= 1.08 x dense",
        "GPT-2 block TP + SP forward + backward, 4 devices, 2 threads | <= 1.08 x dense",
        "GPT-2 block TP + SP forward + backward, 12 devices, 1 thread | <= 1.2 x dense",
        "GPT-2 small TP forward, 4 devices, 1 thread | <= 1.15 x dense",
        "GPT-2 small TP forward + backward, 4 devices, 2 threads | <= 1.15 x dense",
        "attention ring, zigzag forward + backward, 8 devices, 1 thread | <= 1.3 x dense",
        "memory of GPT-2 small for inference, 4 devices | <= 1.15 x dense",
        "all_reduce, 8 devices | <= 50",
    ):
        assert f"| {row}" in text
    beside = ["TP + SP, in a row | ", "LocalTensor, TP | ", "processes, TP | "]
    assert all(re.search(rf"GPT-2 block .* {re.escape(way)}.*\d\.\d\d \(", text) for way in beside)
    tables_alone = [block.splitlines() for block in tables(found).split("\n\n") if block[0] == "|"]
    edges = [len({tuple(i for i, c in enumerate(line) if c == "|") for line in lines}) for lines in tables_alone]
    assert edges == [1] * 12, "twelve tables, each with its cells under each other"


@pytest.mark.parametrize("work", WORKS)
def test_the_layers_that_are_timed_do_the_dense_work(work):
    dense = dense_work(work, QUICK)
    dim = {"column": None, "row": -1, "MLP": None}[work]  # the gradient of the row-parallel input is sharded
    grads = Cluster(4).run(lambda group: step(*device_work(work, group, *dense), backward=True))
    expected = step(*dense, backward=True).tensor_split(4, dim) if dim else [step(*dense, backward=True)] * 4
    for grad, wanted in zip(grads, expected, strict=True):
        assert (grad - wanted).abs().max() < 1e-5


def randomized(dense):
    """The work with other weights: fresh LayerNorms are all alike, and could not be told apart."""
    torch.manual_seed(1)
    for parameter in dense[0].parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return dense


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("sequence", [False, True])
def test_the_block_that_is_timed_does_the_dense_work(sequence, backward):
    dense = randomized(dense_block(QUICK))
    wanted = step(*dense, backward)
    wanted = wanted.tensor_split(3, 1) if sequence else [wanted] * 3  # 8 tokens: pieces of 3, 3 and 2
    program = lambda group: step(*device_block(sequence, QUICK.heads, group, *dense), backward)  # noqa: E731
    for mine, expected in zip(Cluster(3).run(program), wanted, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("order", ["zigzag", "contiguous"])
def test_the_ring_that_is_timed_does_the_dense_work(order, backward):
    dense, cut = dense_attention(QUICK), CutTokens(order, -2)
    wanted = step(*dense, backward)
    program = lambda group: step(*device_attention(order, group, *dense), backward)  # noqa: E731
    for rank, mine in enumerate(Cluster(3).run(program)):
        torch.testing.assert_close(mine, cut.piece(wanted, 3, rank), rtol=1e-5, atol=1e-5)


def test_the_gpt_that_is_timed_does_the_dense_work():
    dense = dense_gpt(QUICK)
    for parameter in dense[0].parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    rows = QUICK.vocabulary // 3 + 1  # 101 tokens are cut into pieces of 34, with one row of padding
    logits, grad = step(*dense, backward=False), step(*dense, backward=True)
    for rank, (mine, given) in enumerate(Cluster(3).run(steps_of_a_device, dense)):
        piece = slice(rank * rows, (rank + 1) * rows)
        torch.testing.assert_close(mine[..., : logits[..., piece].shape[-1]], logits[..., piece], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(given[: len(grad[piece])], grad[piece], rtol=1e-5, atol=1e-5)


def steps_of_a_device(group, dense):
    mine = device_gpt(QUICK, group, *dense)
    return step(*mine, backward=False), step(*mine, backward=True)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("split", "dense"), [(PlainMLP, dense_work("MLP", QUICK)), (PlainBlock, dense_block(QUICK))], ids=("MLP", "block")
)
def test_the_layers_of_others_do_the_dense_work(split, dense, backward):
    randomized(dense)
    with local_tensors(3):
        found = step(*work_of_all(3, split, dense), backward)
    torch.testing.assert_close(found.reconcile(), step(*dense, backward), rtol=1e-5, atol=1e-5)  # on all the same


def test_spent_is_from_the_first_start_to_the_last_end():
    marks = [(Reading(1.0, 7.0, 10), Reading(2.0, 9.0, 30)), (Reading(0.5, 8.0, 20), Reading(3.0, 8.5, 25))]
    assert spent(marks) == Reading(wall=2.5, cpu=2.0, faults=20)


def test_what_warms_up_is_thrown_away_and_the_others_take_turns():
    said = []

    def timer(name):
        return lambda backward, steps: said.append(name) or len(said)

    plan = replace(QUICK, warm_up=1, rounds=2)
    assert interleaved({"a": timer("a"), "b": timer("b")}, False, plan) == {"a": [3, 5], "b": [4, 6]}
    assert "".join(said) == "ababab"


def test_summary_of_one_value():
    assert summary([3.0]) == {"median": 3.0, "low": 3.0, "high": 3.0}
