"""One training step on a grid of devices, with every way of splitting at once.

    my texts                       cut over dp; each text over cp, inside the model
    forward and backward           by the schedule of the pipeline, one micro-batch after the other; tp and ep inside
    gradients                      summed: the tied embedding over its two ends, all else over the devices with the same
                                   weights and other tokens, dp and cp (of an expert, those of them that hold it)
    norm, clip                     one number over all axes
    optimizer                      on whole parameters, or with ZeRO on pieces of them

There is one rule for every factor: the loss of a device is its tokens' part of the loss of all. From there on all
gradients are sums. One device is the grid of size 1, by the same lines.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from lib.devices import Group, different_random
from lib.devices.pieces import cut
from lib.parallel.data.average import shard_batch
from lib.parallel.experts.gradients import sum_gradients
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.grid.config import AXES, ParallelConfig
from lib.parallel.grid.model import CutTexts, expert_grid, grid_gpt
from lib.parallel.grid.owners import Owner, owners
from lib.parallel.grid.ranks import GridGroups, RankGrid
from lib.parallel.pipeline.schedules import interleaved, one_f_one_b
from lib.parallel.pipeline.stages import cut_gpt, cut_layers, reduce_tied
from lib.parallel.pipeline.steps import Schedule
from lib.parallel.pipeline.worker import run_pipeline, total_loss
from lib.parallel.tensor.vocabulary import count_targets, vocab_parallel_cross_entropy
from lib.parallel.zero.optimizer import ShardedOptimizer

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def schedule_of(config: ParallelConfig) -> Schedule:
    """1F1B, or with chunks its interleaved form. On one pipeline device, micro-batch after micro-batch."""
    p, m, v = config.pp, config.micro_batches, config.chunks
    return one_f_one_b(p, m) if v == 1 else interleaved(p, m, v)


class GridTrainer:
    """One device's part of a training of `model` on texts of `length`, `batch` of them in a step.

    `make_optimizer` makes an optimizer of a list of parameters, one that treats each element by itself. `clip` is the
    largest norm of the gradient. `order` is that of the axes, see `RankGrid`. `groups` may be given in place of it.
    All devices must begin with the same random numbers. Raises ValueError for what `ParallelConfig.validate` refuses,
    and for ZeRO 2 and 3.
    """

    def __init__(
        self,
        group: Group,
        config: ParallelConfig,
        model: GPTConfig,
        batch: int,
        length: int,
        make_optimizer: MakeOptimizer,
        clip: float | None = None,
        order: Sequence[str] = AXES,
        groups: GridGroups | None = None,
    ):
        config.validate(group.size, model, length, batch)
        if config.zero > 1:
            raise ValueError(
                f"GridTrainer: zero={config.zero}; it has 0 and 1. Take zero=1, or HybridSharded beside dp alone"
            )
        self.config, self.model, self.clip = config, model, clip
        self.groups = groups = groups or GridGroups(group, RankGrid.of(config, order))
        self.schedule = schedule_of(config)
        self.gpt = self._make(length)
        self.stages = cut_gpt(self.gpt, self.schedule, groups.over("pp").rank)
        self.owners = list(owners(self.gpt, groups, self.schedule))
        self.optimizers = [self._optimizer(own, make_optimizer) for own in self._families()]

    def _make(self, length: int) -> CutTexts:
        """All layers, since every device draws the numbers of all. On meta there are none to draw, so the layers that
        `cut_gpt` will not take are left out."""
        if torch.get_default_device().type != "meta":
            return grid_gpt(self.model, self.config, self.groups, length)
        layers = cut_layers(self.model.layers, self.schedule.stages)
        mine = [i for stage in self.schedule.stages_of(self.groups.over("pp").rank) for i in layers[stage]]
        gpt = grid_gpt(replace(self.model, layers=len(mine)), replace(self.config, pp=1, chunks=1), self.groups, length)
        made = dict(zip(mine, gpt.blocks, strict=True))
        gpt.blocks = nn.ModuleList(made.get(i, nn.Identity()) for i in range(self.model.layers))
        return gpt

    def _families(self) -> list[list[Owner]]:
        """Parameters whose gradients are summed over the same devices: all but experts, and experts."""
        families = [[o for o in self.owners if o.is_expert == expert] for expert in (False, True)]
        return [family for family in families if family]

    def _optimizer(self, family: list[Owner], make: MakeOptimizer) -> Any:
        if self.config.zero == 0:
            return make([owner.parameter for owner in family])
        return ShardedOptimizer(_Some(family), self._summed_over(family[0]), make)

    def _summed_over(self, owner: Owner) -> Group:
        return self.groups.over("edp", "cp") if owner.is_expert else self.groups.over("edp", "cp", "ep")

    def step(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One step with the texts of all devices, (batch, S); a target of -100 does not count. Returns the mean loss,
        and the norm of its gradient before it is clipped: both (), float64, Replicate."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = self.backward(tokens, targets)
        self.reduce()
        norm = self.norm()
        if self.clip is not None:
            clip_grads_with_norm_([p for p, _ in self._stepped()], self.clip, norm)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss, norm

    def backward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward of all micro-batches: gradients through this device's own tokens. The mean loss."""
        dp, pp = self.groups.over("dp"), self.groups.over("pp")
        m = self.config.micro_batches
        # m times (batch / dp / m, S)
        some, follow = (cut(shard_batch(x, dp), m, 0) for x in (tokens, targets))

        counted = count_targets(targets)  # of all devices together

        def loss(y: Tensor, k: int) -> Tensor:
            return self._loss(y, follow[k]) / counted

        with self._random():
            losses = run_pipeline(pp, self.schedule, self.stages, some, loss)
        whole = total_loss(pp, self.schedule, losses)
        return self.groups.over("edp", "cp", "ep").all_reduce(whole)  # ()  Partial -> Replicate

    def _random(self) -> AbstractContextManager[None]:
        """Other texts and other layers drop other elements; the devices of tp share theirs, and what they drop."""
        apart = self.groups.over("edp", "ep", "pp")
        return different_random(apart) if self.model.dropout else nullcontext()

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum over this device's tokens."""
        return vocab_parallel_cross_entropy(
            logits, self.gpt.own(targets), self.groups.over("tp"), self.model.vocabulary
        ).sum()

    def reduce(self) -> None:
        """Every gradient becomes that of one device, or with ZeRO this device's piece of it."""
        reduce_tied(self.groups.over("pp"), self.schedule, self.gpt)
        if self.config.zero == 0:
            sum_gradients(self.gpt, expert_grid(self.groups))
            return
        for optimizer in self.optimizers:
            optimizer.reduce_gradients(share=1.0)

    def norm(self) -> Tensor:
        """The norm of the whole model's gradient, over all axes: () float64, Replicate. One all-reduce of 8 bytes.

        Every element counts once: each of its holders counts it, divided by their number.
        """
        here = self.owners[0].parameter.device
        total = torch.zeros((), dtype=torch.float64, device=here)
        for p, copies in self._stepped():
            total += p.grad.detach().double().square().sum() / copies
        return self.groups.everyone.all_reduce(total).sqrt()

    def _stepped(self) -> list[tuple[nn.Parameter, int]]:
        """What the optimizers step, and how many devices hold the same of it. A piece of ZeRO has one holder of all
        those over which it was cut."""
        if self.config.zero == 0:
            return [(owner.parameter, owner.copies) for owner in self.owners]
        found = []
        for family, optimizer in zip(self._families(), self.optimizers, strict=True):
            for owner, piece in zip(family, optimizer.pieces, strict=True):
                found.append((piece, owner.copies // self._summed_over(owner).size))
        return found


class _Some(nn.Module):
    """Some parameters of a model, under the names that they have there."""

    def __init__(self, family: list[Owner]):
        super().__init__()
        self._named = {owner.name: owner.parameter for owner in family}

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """Those."""
        return iter(self._named.items())
