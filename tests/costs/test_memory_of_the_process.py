"""The memory formula against what PyTorch's allocator really gives out on this machine, counted by its profiler."""

import pytest
import torch
from costs.test_memory import SHAPES, gpt, plan_for
from torch.profiler import ProfilerActivity, profile

from lib import GPT, GPTConfig
from lib.costs.memory import peak
from lib.devices import Cluster
from lib.parallel.zero.master import MasterWeights


def allocated(shape, plan):
    """The most bytes that a step holds: what stood before it, and the running sum of all that comes and goes."""
    config = GPTConfig(*shape[:4], positions=shape[4], dropout=0.0)

    def train(group):
        model = GPT(config, group, recompute=plan.recompute)
        if plan.precision == "mixed":
            model = model.bfloat16()
            optimizer = MasterWeights(model.parameters(), torch.optim.AdamW)
        else:
            optimizer = torch.optim.AdamW(model.parameters())
        tokens = torch.zeros(plan.micro_batch, plan.sequence, dtype=torch.long)

        def step():
            optimizer.zero_grad()
            for _ in range(plan.micro_batches):
                model(tokens, tokens).backward()
            optimizer.step()

        step()
        optimizer.zero_grad()
        stand = [*model.parameters(), *getattr(optimizer, "masters", []), *state_of(optimizer)]
        before = sum(x.numel() * x.element_size() for x in stand)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            step()
        return before + most(seen)

    return Cluster(1).run(train)[0]


def state_of(optimizer):
    state = getattr(optimizer, "optimizer", optimizer).state
    return [x for each in state.values() for x in each.values() if isinstance(x, torch.Tensor)]


def most(seen):
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = highest = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


@pytest.mark.parametrize(
    "options",
    [{}, {"recompute": "selective"}, {"recompute": "full"}, {"micro_batches": 3}, {"precision": "mixed"}],
    ids=str,
)
def test_the_peak_of_a_step_is_what_the_allocator_gives_out(options):
    for shape in SHAPES if not options else SHAPES[1::2]:  # what an option changes, it changes at every shape
        plan = plan_for(shape, **options)
        assert peak(gpt(shape), plan).total == pytest.approx(allocated(shape, plan), rel=0.02), shape
