"""With experts and cut texts too: saved on one grid of all axes, resumed on another."""

import pytest
import torch

from lib.devices import Cluster
from lib.parallel.experts.gradients import is_divided
from lib.parallel.experts.model import ExpertGPTConfig
from lib.parallel.grid.config import ParallelConfig
from lib.parallel.grid.trainer import GridTrainer
from lib.parallel.recovery import checkpoint as files
from lib.parallel.recovery.saving import save
from lib.parallel.recovery.state import all_held, parameters_held

BATCH, LENGTH, STEPS = 4, 8, 4
MODEL = ExpertGPTConfig(2, 8, 2, vocabulary=10, positions=LENGTH, deviation=0.3, experts=4, k=2, inner=8)
GRIDS = [
    ParallelConfig(), ParallelConfig(dp=2, ep=2), ParallelConfig(dp=2, cp=2, zero=1), ParallelConfig(dp=4, ep=4),
    ParallelConfig(dp=2, ep=2, tp=2, zero=1), ParallelConfig(dp=2, pp=2, ep=2, micro_batches=2),
]  # fmt: skip


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def held_by(trainer, saved=None):
    """Experts are cut over ep and tp, all else over tp."""
    tp, both = trainer.groups.over("tp"), trainer.groups.over("ep", "tp")
    parameters = parameters_held(trainer.gpt, tp, lambda layout: both if is_divided(layout) else tp)
    return all_held(parameters, trainer.optimizers, saved)


def train(group, config, folder, stop, resume=False):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    trainer = GridTrainer(group, config, MODEL, BATCH, LENGTH, adam, clip=0.5)
    done = 0
    if resume:
        place, _ = files.newest(folder, group)
        files.load(place, held_by(trainer, files.manifest_of(place)["tensors"]))
        done = files.manifest_of(place)["step"]
    else:
        for name, x in trainer.gpt.named_buffers():  # as balancing moves the router's bias, a buffer
            if name.endswith("router.bias"):
                x.copy_(torch.linspace(-1, 1, len(x)))
    texts = torch.randint(10, (STEPS, 2, BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    losses = [trainer.step(*pair)[0].item() for pair in texts[done:stop]]
    if folder and not resume:
        save(folder, stop, held_by(trainer), {}, group)
    return losses


@pytest.fixture(scope="module")
def uninterrupted():
    return Cluster(1).run(train, GRIDS[0], None, STEPS)[0]


@pytest.mark.parametrize(("before", "after"), list(zip(GRIDS, GRIDS[1:] + GRIDS[:1], strict=True)), ids=str)
def test_the_training_goes_on_on_another_grid(before, after, tmp_path, uninterrupted):
    Cluster(before.devices).run(train, before, tmp_path, 2)
    for losses in Cluster(after.devices).run(train, after, tmp_path, STEPS, True):
        assert losses == pytest.approx(uninterrupted[2:], rel=1e-10)
    names = {name.partition(".")[0] for name in files.manifest_of(files.complete(tmp_path)[0])["tensors"]}
    assert names == {"parameter", "buffer", "exp_avg", "exp_avg_sq", "step"}
