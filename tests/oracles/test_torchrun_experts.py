"""Experts for real: gloo processes, torch.distributed alone and torchrun give what simulated devices give."""

import re

import pytest
import torch
from oracles.agree import compare
from oracles.commands import simulated, torchrun
from oracles.real_experts import PROGRAMS, all_programs, plain_layer, weights
from parallel.expert_layer import inputs, together

from lib.devices import Cluster
from lib.examples import train_experts
from lib.parallel.experts.router import RoutingRule
from lib.real.processes import Processes


@pytest.fixture(scope="module")
def both():
    """Simulated and real: the devices, and what all programs gave on them, in one run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    runs = [(devices, devices.run(all_programs)) for devices in (Cluster(4), Processes(4))]
    torch.set_num_threads(before)
    return runs


@pytest.mark.parametrize("name", [*PROGRAMS, "experts x tensor"])
def test_the_same_values(both, name):
    (_, ours), (_, real) = both
    for rank in range(4):
        compare(ours[rank][name], real[rank][name], f"rank {rank}", atol=1e-12)


def test_the_same_bytes(both):
    (simulated_devices, _), (real, _) = both
    assert simulated_devices.meters.rows() == real.meters.rows()


@pytest.mark.parametrize("size", [2, 4])
def test_torch_distributed_alone(worlds, size):
    named = weights()
    x, above = inputs()
    theirs = worlds[size].run(plain_layer, x, named["router.weight"], named["experts.up"], named["experts.down"])
    ours, _, _ = together(size, RoutingRule(8, 2), x, above)
    assert float((torch.cat(theirs) - ours["output"]).abs().max()) < 1e-12


def test_a_gpt_with_experts_trains_alike_under_torchrun():
    options = ["--steps", 2, "--expert-parallel", 2, "--tensor-parallel", 2]
    said = torchrun(real=(4, "-m", "lib.examples.train_experts", *options))["real"]
    ours = simulated(train_experts.main, *options)
    pattern = r"^step (\d)  loss (\d\.\d{12})  busiest expert (\d\.\d\d)"
    found, expected = (re.findall(pattern, text, re.M) for text in (said, ours))
    assert [step for step, _, _ in found] == ["0", "1"]
    for (_, loss, uneven), (_, right, as_uneven) in zip(found, expected, strict=True):
        assert abs(float(loss) - float(right)) < 1e-9
        assert uneven == as_uneven
