"""Training a GPT as practitioners do, on one device of many: data x pipeline x tensor parallel, ZeRO, clipping.

`training.py` is the same in forty lines, without the options. `GridTrainer` has more axes, and wants equal pieces along
all of them. Here replicas and micro-batches may differ by a text, so every gradient carries its `share` of the batch;
and ZeRO goes up to stage 3, with master weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import AdamW

from lib.devices import Group, Mesh
from lib.devices.pieces import cut
from lib.examples.recipe import Recipe
from lib.examples.text import Text
from lib.parallel.data.average import average_gradients, shard_batch
from lib.parallel.data.clip import gradient_norm
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT
from lib.parallel.pipeline.schedules import one_f_one_b
from lib.parallel.pipeline.stages import cut_gpt, reduce_tied
from lib.parallel.pipeline.worker import run_pipeline, total_loss
from lib.parallel.sequence.model import SequenceGPT
from lib.parallel.sharding.dense import layout_of
from lib.parallel.sharding.placement import Replicate
from lib.parallel.tensor.vocabulary import mean_loss, vocab_parallel_cross_entropy
from lib.parallel.zero.fully_sharded import FullySharded
from lib.parallel.zero.master import MasterWeights
from lib.parallel.zero.optimizer import ShardedOptimizer


class Trainer:
    """One device's part of a training. `group` holds all devices; neighbors share a replica, since tensor parallelism
    talks most. Raises ValueError when the devices cannot be arranged so.

    `model` is this device's GPT, `optimizer` what is stepped, and `adam` the AdamW inside of it, whose rate is set.
    """

    def __init__(self, group: Group, config: GPTConfig, recipe: Recipe):
        recipe.check(group.size)
        self.recipe = recipe
        dp, pp = recipe.data_parallel, recipe.pipeline_parallel
        self.mesh = Mesh(group, dp=dp, pp=pp, tp=group.size // dp // pp)
        torch.manual_seed(recipe.seed)  # every device draws the same dense weights, and keeps its shards
        kind = SequenceGPT if recipe.sequence_parallel else GPT
        self.model = kind(config, self.mesh.tp, recipe.recompute).to(recipe.dtype)
        self.schedule = one_f_one_b(pp, recipe.accumulate)
        self.stages = cut_gpt(self.model, self.schedule, self.mesh.pp.rank) if pp > 1 else {}
        names = dict(self.model.named_parameters())
        is_cut = [not isinstance(layout_of(self.model, name), Replicate) for name in names]
        self.sharded: FullySharded | None = None
        if recipe.zero == 3:
            self.sharded = FullySharded(self.model, self.mesh.dp, layers=self.model.blocks)
        if recipe.zero in (1, 2):
            self.optimizer: Any = ShardedOptimizer(self.model, self.mesh.dp, self._make_optimizer)
            stepped = self.optimizer.pieces
        else:
            stepped = list(self.model.parameters())
            self.optimizer = self._make_optimizer(stepped)
        self._stepped = stepped
        over_dp = recipe.zero > 0
        replica = Mesh(group, dp=dp, replica=group.size // dp).replica
        # The last stage has a copy of the embedding: where the first is another device, its norm counts there.
        copy = self.model.embedding.weight if pp > 1 and self.mesh.pp.rank == pp - 1 else None
        #: whose gradients are whole where: (parameters, the group over which they are cut), for the norm
        self._parts: list[tuple[list[nn.Parameter], Group]] = [
            (
                [p for p, own in zip(stepped, is_cut, strict=True) if own and p is not copy],
                group if over_dp else replica,
            ),
            (
                [p for p, own in zip(stepped, is_cut, strict=True) if not own],
                self.mesh.dp if over_dp else self.mesh.pp,
            ),
        ]
        self.rates = self._make_rates()

    def _make_optimizer(self, parameters: list[nn.Parameter]) -> AdamW | MasterWeights:
        def adam(some: list[nn.Parameter]) -> AdamW:
            self.adam = AdamW(some, lr=self.recipe.rate, betas=(0.9, 0.95), weight_decay=0.1)
            return self.adam

        return MasterWeights(parameters, adam) if self.recipe.has_masters else adam(parameters)

    def _make_rates(self, done: int = 0) -> torch.optim.lr_scheduler.OneCycleLR:
        return torch.optim.lr_scheduler.OneCycleLR(
            self.adam, self.recipe.rate, total_steps=self.recipe.steps, cycle_momentum=False, last_epoch=done - 1
        )

    def go_on_after(self, done: int) -> None:
        """The optimizer's state is that after `done` steps; so shall the learning rate be."""
        self.rates = self._make_rates(done)

    def step(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One step with all devices' texts (batch, S). Returns the mean loss, () Partial over the replicas, and the
        norm of its gradient, () Replicate."""
        tokens, targets = shard_batch(tokens, self.mesh.dp), shard_batch(targets, self.mesh.dp)  # (B/dp, S)  Shard(0)
        share = len(tokens) / self.recipe.batch
        self.optimizer.zero_grad()
        loss = torch.zeros((), dtype=torch.float64, device=tokens.device)
        if self.stages:
            loss += self._run_stages(tokens, targets)
        pieces = zip(cut(tokens, self.recipe.accumulate, 0), cut(targets, self.recipe.accumulate, 0), strict=True)
        for some, follow in pieces if not self.stages else ():  # (B/dp/micro, S)
            weight = len(some) / len(tokens)
            with self._reducing(share):
                part = self.model(some, follow) * weight
                # FullySharded takes the mean over the devices: what is here more than elsewhere counts more.
                (part * (share * self.mesh.dp.size) if self.sharded else part).backward()
            loss += part.detach()
        if self.recipe.zero == 1:
            self.optimizer.reduce_gradients(share)
        elif self.recipe.zero == 0:
            average_gradients(self.model, self.mesh.dp, share)
        norm = self._norm()
        if self.recipe.clip is not None:
            clip_grads_with_norm_(self._stepped, self.recipe.clip, norm)
        self.optimizer.step()
        self.rates.step()
        return share * loss, norm

    def _run_stages(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The micro-batches through the stages of this replica; the loss, () Replicate."""
        some, follow = cut(tokens, self.recipe.accumulate, 0), cut(targets, self.recipe.accumulate, 0)

        def loss(logits: Tensor, k: int) -> Tensor:
            losses = vocab_parallel_cross_entropy(logits, follow[k], self.mesh.tp, self.model.config.vocabulary)
            return mean_loss(losses, follow[k]) * (len(follow[k]) / len(targets))

        losses = run_pipeline(self.mesh.pp, self.schedule, self.stages, some, loss)
        reduce_tied(self.mesh.pp, self.schedule, self.model)
        return total_loss(self.mesh.pp, self.schedule, losses)

    @contextmanager
    def _reducing(self, share: float) -> Iterator[None]:
        with self.optimizer.reducing(share) if self.recipe.zero == 2 else nullcontext():
            yield

    def _norm(self) -> Tensor:
        """Of the gradient of the whole model: each element counts once, wherever it lies."""
        norms = [gradient_norm(some, over, sharded=some) for some, over in self._parts]
        return torch.stack(norms).square().sum().sqrt()

    @torch.no_grad()
    def evaluate(self, text: Text, batches: int = 4) -> Tensor:
        """The mean loss of the same `batches` batches of `text` each time, () Partial over the replicas."""
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for tokens, targets in text.batches(batches, self.recipe.batch, self.recipe.length, seed=self.recipe.seed):
            some, follow = (shard_batch(x.to(self._device), self.mesh.dp) for x in (tokens, targets))
            total += self.model(some, follow).double() * (len(some) / self.recipe.batch)
        self.model.train()
        return total / batches

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def own_weights(self) -> dict[str, Tensor]:
        """This device's tensor-parallel pieces, by name. With ZeRO 3, by one all-gather per layer over the replicas."""
        if self.sharded:
            return self.sharded.whole_parameters()
        return {name: p.detach() for name, p in self.model.named_parameters()}
