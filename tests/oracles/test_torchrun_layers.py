"""Every layer and every way of training: real processes and simulated devices compute the same, and send the same."""

import pytest
import torch
from oracles.agree import compare
from oracles.real_layers import PROGRAMS, all_programs, make_gpt

from lib import dense_state
from lib.devices import Cluster
from lib.real.processes import Processes


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def both(one_thread):
    """Simulated and real: the devices, and what all programs gave on them, in one run."""
    before = torch.get_rng_state()
    runs = []
    for devices in (Cluster(4), Processes(4)):
        torch.set_rng_state(before)
        runs.append((devices, devices.run(all_programs)))
    return runs


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_values(both, name):
    (_, simulated), (_, real) = both
    for rank, (ours, theirs) in enumerate(zip(simulated, real, strict=True)):
        compare(ours[name], theirs[name], f"rank {rank}", atol=1e-12)


def test_the_same_bytes(both):
    (simulated, _), (real, _) = both
    assert simulated.meters.rows() == real.meters.rows()


def test_a_model_may_be_returned_and_knows_that_its_run_is_over():
    simulated, real = Cluster(2).run(make_gpt), Processes(2).run(make_gpt)
    compare(dense_state(simulated), dense_state(real), "all", atol=0)
    group = real[1].group
    assert (group.rank, group.ranks) == (1, (0, 1))
    x = torch.ones(2)
    for call in (lambda: group.all_reduce(x), lambda: group.send(x, 0), lambda: group.split([[0, 1]]).recv(0)):
        with pytest.raises(RuntimeError, match=r"rank 1 called (all_reduce|send|recv)\(.*\) after its run had ended"):
            call()
