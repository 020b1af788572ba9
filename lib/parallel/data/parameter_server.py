"""Asynchronous training: rank 0 keeps the parameters, the others send gradients whenever they have one.

Nobody waits for the slowest. The price: while a worker computes, others change the parameters, so its gradient belongs
to parameters that are gone. How many updates it missed is its staleness. For a parabola of curvature c, gradients that
are stale by s updates converge only below a step size of 2 sin(pi / (4s + 2)) / c; without staleness that is 2 / c.
Dean et al. 2012, "Large Scale Distributed Deep Networks".

A message names its sender, so the server must know whose gradient comes next. It follows a plan, made beforehand from
the workers' speeds: so a run is the same whenever it is repeated, simulated or for real.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from lib.devices import Group
from lib.parallel.data.backward import trainable


@dataclass(frozen=True)
class Update:
    """Update `number` (from 0) is made with the gradient of `worker`, computed when `read` updates had been made."""

    number: int
    worker: int
    read: int

    @property
    def staleness(self) -> int:
        """How many updates were made between reading the parameters and changing them."""
        return self.number - self.read


def plan_updates(seconds: Sequence[float], updates: int) -> list[Update]:
    """Who comes when, if worker r (from 1) needs `seconds[r-1]` for a gradient and messages take no time.

    Raises ValueError without workers, or if a time is not above 0.
    """
    if not seconds or min(seconds) <= 0:
        raise ValueError(
            f"seconds={list(seconds)}: one time per worker, each above 0; rank 0 serves, ranks from 1 work"
        )
    finishing = [(time, worker, 0) for worker, time in enumerate(seconds, start=1)]  # when, who, with what it has read
    heapq.heapify(finishing)
    plan = []
    for number in range(updates):
        time, worker, read = heapq.heappop(finishing)
        plan.append(Update(number, worker, read))
        heapq.heappush(finishing, (time + seconds[worker - 1], worker, number + 1))
    return plan


def train_asynchronously(
    group: Group,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[nn.Module], Tensor],
    plan: Sequence[Update],
) -> list[float]:
    """Every update of `plan`; afterwards every device's `model` holds the server's parameters.

    Rank 0 serves: it alone steps its `optimizer`. The others work: `loss(model)` is the loss of a worker's next batch.
    Returns the losses as the workers saw them, in the order of the updates; on the workers, their own.

    Raises ValueError when the plan names a worker that is not there, or a parameter that trains gets no gradient.
    """
    strangers = {update.worker for update in plan} - set(range(1, group.size))
    if strangers:
        raise ValueError(
            f"train_asynchronously on rank {group.rank} of {group.size}: the plan names workers {sorted(strangers)}; "
            f"rank 0 serves, so there are workers 1 to {group.size - 1}. Make the plan with one time per worker"
        )
    mine = [update for update in plan if update.worker == group.rank]
    trained = trainable(model, group, f"train_asynchronously on rank {group.rank} of {group.size}")
    everything = list(model.parameters())
    _write(everything, group.broadcast(_vector(everything)))
    if group.rank == 0:
        losses = _serve(group, list(trained.values()), optimizer, plan)
    else:
        losses = _work(group, trained, lambda: loss(model), len(mine))
    _write(everything, group.broadcast(_vector(everything)))
    return losses


def _serve(
    group: Group, trained: list[nn.Parameter], optimizer: torch.optim.Optimizer, plan: Sequence[Update]
) -> list[float]:
    losses = []
    for update in plan:
        message = group.recv(update.worker)  # (parameters + 1,)
        losses.append(message[-1].item())
        gradient = message[:-1].split([p.numel() for p in trained])
        for p, piece in zip(trained, gradient, strict=True):
            p.grad = piece.view_as(p).to(p.dtype)
        optimizer.step()
        group.send(_vector(trained), update.worker)
    return losses


def _work(group: Group, trained: dict[str, nn.Parameter], loss: Callable[[], Tensor], times: int) -> list[float]:
    losses, parameters = [], list(trained.values())
    for _ in range(times):
        for p in parameters:
            p.grad = None
        value = loss()
        value.backward()
        losses.append(value.item())
        without = [name for name, p in trained.items() if p.grad is None]
        if without:
            raise ValueError(
                f"train_asynchronously on rank {group.rank} of {group.size}: no gradient reached {', '.join(without)}. "
                "Freeze what the loss does not depend on with requires_grad_(False), on all devices"
            )
        group.send(torch.cat([_vector([p.grad for p in parameters]), value.detach().reshape(1)]), 0)
        _write(parameters, group.recv(0))
    return losses


@torch.no_grad()
def _vector(tensors: list[Tensor]) -> Tensor:
    return parameters_to_vector(tensors)  # (n,), in the widest type of them


@torch.no_grad()
def _write(parameters: list[nn.Parameter], vector: Tensor) -> None:
    for p, piece in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        p.copy_(piece.view_as(p))  # vector_to_parameters would give all of them the type of the vector
