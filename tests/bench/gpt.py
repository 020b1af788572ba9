"""All of GPT-2 small, from tokens to logits and back, on many devices against the dense one; what inference holds."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.dense import DenseGPT
from bench.memory import resident
from bench.plan import Plan, progress
from bench.rounds import Work, compare, time_dense, time_simulated
from lib import Cluster, Group, load_dense
from lib.devices.counts import counted
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT

WORK = "GPT-2 small"


class Learner(nn.Module):
    """A model as it is used: without gradients it gives logits, with gradients the loss."""

    def forward(self, text: Tensor) -> Tensor:
        """text (batch, tokens + 1), integers."""
        tokens, targets = text[:, :-1], text[:, 1:]
        return self.loss(tokens, targets) if torch.is_grad_enabled() else self.model(tokens)


class DenseLearner(Learner):
    def __init__(self, plan: Plan):
        super().__init__()
        self.model = DenseGPT(plan.width, plan.heads, plan.layers, plan.vocabulary, plan.text)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.model(tokens).flatten(0, 1), targets.flatten())


class DeviceLearner(Learner):
    def __init__(self, plan: Plan, group: Group):
        super().__init__()
        config = GPTConfig(plan.layers, plan.width, plan.heads, plan.vocabulary, plan.text, approximate="none")
        with torch.device("meta"):  # the weights come from elsewhere: random ones would only take time
            self.model = GPT(config, group)
        self.model.to_empty(device="cpu")

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.model(tokens, targets)


def dense_gpt(plan: Plan) -> Work:
    """The dense model, a text, and the gradient of the loss."""
    torch.manual_seed(0)
    return DenseLearner(plan), torch.randint(plan.vocabulary, (1, plan.text + 1)), torch.ones(())


def device_gpt(plan: Plan, group: Group, dense: DenseLearner, text: Tensor, above: Tensor) -> Work:
    """The same for one device."""
    mine = DeviceLearner(plan, group)
    load_dense(mine.model, dense.model.state_dict(), group)
    return mine, text, above


def measure(plan: Plan, threads: int) -> list[dict]:
    """One dict per direction and variant, with the ratio to the dense time of the same round."""
    torch.set_num_threads(threads)
    dense, rows = dense_gpt(plan), []
    variants = {("dense", 1): partial(time_dense, dense)}
    variants |= {("TP", n): partial(time_simulated, n, partial(device_gpt, plan), dense) for n in plan.in_gpt}
    for backward in (False, True):
        progress(f"  {WORK}, forward{' + backward' * backward}, {counted(threads, 'thread')} ...")
        rows += compare(variants, backward, replace(plan, rounds=plan.long_rounds), work=WORK, threads=threads)
    return rows


@torch.no_grad()
def infer(group: Group, plan: Plan, devices: int) -> None:
    """One device's weights, and a forward pass. With no `devices` it is the dense model."""
    model = DeviceLearner(plan, group) if devices else DenseLearner(plan)
    for parameter in model.parameters():
        parameter.fill_(0.01)  # memory counts when it is written to
    group.barrier()
    model(torch.zeros(1, plan.text + 1, dtype=torch.long))


def measure_inference(plan: Plan, devices: int) -> dict:
    """Bytes that weights and a forward pass take together. Needs a fresh process: a peak never falls."""
    torch.set_num_threads(1)
    tiny = Plan(width=plan.heads, layers=1, vocabulary=64, text=4, heads=plan.heads)
    Cluster(max(devices, 1)).run(infer, tiny, devices)  # whatever is loaded at first use shall not count
    before = resident(peak=False)
    Cluster(max(devices, 1)).run(infer, plan, devices)
    return {"devices": devices, "peak": resident(peak=True) - before}
