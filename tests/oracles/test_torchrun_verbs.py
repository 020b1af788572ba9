"""Every verb of a Group: real processes and simulated devices give the same, and count the same bytes."""

import pytest
import torch
from oracles import real_layers, real_verbs
from oracles.agree import agree

from lib.devices import Cluster
from lib.real.processes import Processes

SIZES = [2, 3]
GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


@pytest.fixture(autouse=True)
def random_start():
    torch.manual_seed(3)


@pytest.mark.parametrize("size", SIZES)
def test_every_verb_in_every_dtype_messages_handles_groups_and_streams(size):
    agree(real_verbs.everything, size, atol=0)


@pytest.mark.parametrize("size", [1, 2])
def test_results_have_the_strides_of_new_tensors(size):
    simulated, real = Cluster(size).run(real_verbs.strides), Processes(size).run(real_verbs.strides)
    assert simulated == real
    for (_, name), (shape, stride) in simulated[0].items():
        assert stride == torch.empty(shape).stride(), name


def test_what_is_no_number_is_passed_on():
    simulated, real = Cluster(2).run(real_verbs.not_numbers), Processes(2).run(real_verbs.not_numbers)
    assert real == simulated
    assert simulated[0]["max"][0] == [True, True, False, False]


def test_one_process_is_the_identity():
    agree(real_verbs.single_numbers, 1, atol=0)
    agree(real_verbs.every_verb_in_every_dtype, 1, atol=0)


def test_without_data():
    with torch.device("meta"):
        agree(real_layers.some_programs, 2)


@pytest.mark.skipif(GPUS < 2, reason=f"NCCL needs a GPU for each process; this machine has {GPUS} for two")
def test_on_gpus():
    size = min(GPUS, 4)
    with torch.device("cuda"):
        agree(real_verbs.everything, size, atol=0)
        agree(real_layers.some_programs, size, atol=1e-10)


def test_the_callers_modes_hold():
    with torch.no_grad(), torch.device("meta"):
        assert Processes(2).run(real_verbs.modes) == [(False, "torch.float32", "meta")] * 2
    assert Processes(1).run(real_verbs.modes) == [(True, "torch.float32", "cpu")]


@pytest.mark.parametrize(("callers", "each"), [(1, 1), (5, 2)])
def test_the_callers_threads_are_shared_among_the_processes(monkeypatch, callers, each):
    monkeypatch.setattr(torch, "get_num_threads", lambda: callers)
    assert Processes(2).run(real_verbs.threads) == [each, each]
