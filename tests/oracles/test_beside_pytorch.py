"""The pairs of the chapter "For real": our training beside PyTorch's own tools, and both beside one device."""

import math

import pytest
import torch
import torch.distributed as dist
from oracles.real_pairs import PAIRS, run_all

from lib.devices import Cluster
from lib.examples.beside_pytorch import data_parallel, device_mesh, fsdp, grid
from lib.examples.small_training import (
    BATCH,
    batches,
    dense_mlp,
    one_device,
    weights,
)
from lib.real.processes import Processes

STEPS, FEW = 5, 2


def largest_difference(some, others) -> float:
    """Over all losses and all elements of all weights. Errors: KeyError when the weights have other names."""
    (losses, state), (other_losses, other_state) = some, others
    pairs = [(torch.tensor(losses, dtype=torch.float64), torch.tensor(other_losses, dtype=torch.float64))]
    pairs += [(state[name], other_state[name]) for name in sorted(state.keys() | other_state.keys())]
    return torch.cat([(a - b).flatten() for a, b in pairs]).abs().max().item()


@pytest.mark.parametrize("size", [3, 4])
def test_ours_simulated_and_real_and_pytorchs_and_one_device_agree(size):
    ours = [program for program in PAIRS if (size == 4) == (program is grid)]  # 2 x 2, and all others unevenly
    theirs = [PAIRS[program] for program in ours]
    real = Processes(size).run(run_all, [*ours, *theirs], FEW)
    assert not any(left_behind for _, left_behind in real)
    losses, state = one_device(FEW)
    for program in ours:
        simulated = Cluster(size)
        outputs = simulated.run(program, FEW)
        assert all(simulated.meters.count(rank).bytes_sent > 0 for rank in range(size))
        for output, (results, _) in zip(outputs, real, strict=True):
            assert largest_difference(output, results[program.__name__]) <= 1e-12
            assert largest_difference(output, results[PAIRS[program].__name__]) <= 1e-12
            assert largest_difference(([], output[1]), ([], state)) <= 1e-12
        means = [sum(column) / size for column in zip(*(of_this_device for of_this_device, _ in outputs), strict=True)]
        assert means == pytest.approx(losses, rel=0, abs=1e-12)


def test_it_learns():
    losses, state = one_device(STEPS)
    assert losses[-1] < losses[0] / 2
    assert len(losses) == STEPS
    start = weights(dense_mlp())
    assert all((state[name] - start[name]).abs().max() > 0.02 for name in start)


def test_one_device_trains_as_a_plain_loop_does():
    """No gradient outlives its step."""
    model = dense_mlp()
    parameters, losses = list(model.parameters()), []
    optimizer = torch.optim.AdamW(parameters, lr=0.02)
    for x, target in batches(STEPS):
        loss = (model(x) - target).square().mean()
        for p, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = grad
        optimizer.step()
        losses.append(loss.item())
    assert largest_difference(one_device(STEPS), (losses, weights(model))) <= 1e-12


def test_the_difference_sees_every_loss_and_every_weight():
    losses, state = one_device(2)
    assert largest_difference((losses, state), (losses, state)) == 0
    assert largest_difference((losses, state), ([losses[0], losses[1] - 1e-9], state)) == pytest.approx(1e-9, rel=1e-6)
    for name in state:
        other = {**state, name: state[name].clone()}
        other[name].view(-1)[-1] += 1e-9
        assert largest_difference((losses, state), (losses, other)) == pytest.approx(1e-9, rel=1e-6)
        other[name].view(-1)[-1] = math.nan
        assert math.isnan(largest_difference((losses, state), (losses, other)))
    for some, others in ((state, {}), ({}, state)):
        with pytest.raises(KeyError, match="down.bias"):
            largest_difference((losses, some), (losses, others))


def test_simulated_devices_are_refused_by_pytorchs_tools():
    with pytest.raises(RuntimeError, match=r"4 devices share a process.*Processes\(4\) in the place of Cluster\(4\)"):
        Cluster(4).run(fsdp, 1)
    assert not dist.is_initialized()


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=f"{BATCH} samples cannot be split evenly over 5 devices"):
        Cluster(5).run(data_parallel, 1)


def test_one_device_alone():
    torch.manual_seed(7)
    assert largest_difference(Cluster(1).run(data_parallel, 2)[0], one_device(2)) == 0


@pytest.mark.parametrize("program", [grid, device_mesh])
def test_a_grid_of_an_odd_number_of_devices_is_refused(program):
    with pytest.raises(ValueError, match="dp=2 x tp=1 needs 2 devices, but the group has 3"):
        Processes(3).run(program, 1)
