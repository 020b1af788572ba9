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
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lib.devices import Group


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

    Raises ValueError when the plan names a worker that is not there.
    """
    strangers = {update.worker for update in plan} - set(range(1, group.size))
    if strangers:
        raise ValueError(
            f"train_asynchronously on rank {group.rank} of {group.size}: the plan names workers {sorted(strangers)}; "
            f"rank 0 serves, so there are workers 1 to {group.size - 1}. Make the plan with one time per worker"
        )
    mine = [update for update in plan if update.worker == group.rank]
    with torch.no_grad():
        _write(model, group.broadcast(parameters_to_vector(model.parameters())))
    losses = _serve(group, model, optimizer, plan) if group.rank == 0 else _work(group, model, loss, len(mine))
    with torch.no_grad():
        _write(model, group.broadcast(parameters_to_vector(model.parameters())))
    return losses


def _serve(group: Group, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Sequence[Update]) -> list[float]:
    losses = []
    for update in plan:
        message = group.recv(update.worker)  # (parameters + 1,)
        losses.append(message[-1].item())
        gradient = message[:-1].split([p.numel() for p in model.parameters()])
        for p, piece in zip(model.parameters(), gradient, strict=True):
            p.grad = piece.view_as(p)
        optimizer.step()
        with torch.no_grad():
            group.send(parameters_to_vector(model.parameters()), update.worker)
    return losses


def _work(group: Group, model: nn.Module, loss: Callable[[nn.Module], Tensor], times: int) -> list[float]:
    losses = []
    for _ in range(times):
        model.zero_grad()
        value = loss(model)
        value.backward()
        losses.append(value.item())
        with torch.no_grad():
            gradient = parameters_to_vector([p.grad for p in model.parameters()])  # (parameters,)
            group.send(torch.cat([gradient, value.reshape(1)]), 0)
            _write(model, group.recv(0))
    return losses


def _write(model: nn.Module, vector: Tensor) -> None:
    vector_to_parameters(vector, model.parameters())
