"""A GPT in stages on many devices against one device: the same micro-batches, the same weights, the same gradients."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.dense import DenseGPT
from bench.plan import Plan, progress
from bench.rounds import Work, compare, time_dense, time_simulated
from lib import GPT, GPTConfig, Group, cut_gpt, load_dense, one_f_one_b, run_pipeline
from lib.devices.counts import counted


class OneDevice(nn.Module):
    """The dense model, whose losses of the micro-batches are added up before the backward of each."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.micros = plan.micros
        self.model = DenseGPT(plan.width, plan.heads, plan.layers, plan.vocabulary, plan.text)

    def forward(self, text: Tensor) -> Tensor:
        """text (micro-batches, tokens + 1), integers. All backwards but the last are done inside."""
        for k, some in enumerate(text.split(1)):
            logits = self.model(some[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten()) / self.micros
            if k < self.micros - 1:
                loss.backward()
        return loss


class Stages(nn.Module):
    """One device's layers."""

    def __init__(self, plan: Plan, group: Group, dense: OneDevice):
        super().__init__()
        config = GPTConfig(plan.layers, plan.width, plan.heads, plan.vocabulary, plan.text, approximate="none")
        with torch.device("meta"):
            gpt = GPT(config, group.split(group.size))
        gpt.to_empty(device="cpu")
        load_dense(gpt, dense.model.state_dict(), gpt.group)
        self.group, self.schedule = group, one_f_one_b(group.size, plan.micros)
        self.stages = cut_gpt(gpt, self.schedule, group.rank)
        self.model = gpt

    def forward(self, text: Tensor) -> Tensor:
        """All of the step; what is returned has a backward that does nothing."""

        def loss(logits: Tensor, k: int) -> Tensor:
            return F.cross_entropy(logits.flatten(0, 1), text[k, 1:]) / len(text)

        run_pipeline(self.group, self.schedule, self.stages, [some[:, :-1] for some in text.split(1)], loss)
        return torch.zeros((), requires_grad=True)


def in_stages(plan: Plan, group: Group, dense: OneDevice, text: Tensor, above: Tensor) -> Work:
    """The work of one device."""
    return Stages(plan, group, dense), text, above


def measure(plan: Plan, threads: int) -> list[dict]:
    """One dict per variant, with the ratio to one device in the same round. Forward and backward: there is no other."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dense: Work = OneDevice(plan), torch.randint(plan.vocabulary, (plan.micros, plan.text + 1)), torch.ones(())
    variants = {("dense", 1): partial(time_dense, dense)}
    variants |= {("1F1B", n): partial(time_simulated, n, partial(in_stages, plan), dense) for n in plan.in_pipeline}
    progress(f"  pipeline, forward + backward, {counted(threads, 'thread')} ...")
    return list(
        compare(variants, True, replace(plan, rounds=plan.long_rounds), work="GPT-2 in stages", threads=threads)
    )
