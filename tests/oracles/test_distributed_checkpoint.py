"""PyTorch's own distributed checkpoints and the book's, converted into each other."""

import pytest
import torch
import torch.distributed.checkpoint as dcp

from lib.devices import Cluster
from lib.parallel.recovery.blocks import Block, Held
from lib.parallel.recovery.checkpoint import complete, load
from lib.parallel.recovery.dense import held_whole, whole_tensors
from lib.parallel.recovery.saving import save

TENSORS = {
    "parameter.w": torch.arange(24, dtype=torch.float64).view(6, 4), "exp_avg.w": torch.arange(24.0).view(6, 4) / 7,
    "parameter.b": torch.arange(5).to(torch.bfloat16), "step.w": torch.tensor(3.0),
}  # fmt: skip


def held(group, tensors):
    """The matrices by columns, the rest on all devices."""
    for name, x in tensors.items():
        if x.ndim == 2:
            columns = tuple(range(x.shape[1]))[group.rank :: group.size]  # not even consecutive
            yield Held(name, x[:, list(columns)].clone(), tuple(x.shape), (tuple(range(len(x))), columns))
        else:
            yield held_whole({name: x.clone()})[0]


@pytest.mark.filterwarnings("ignore")  # PyTorch: no process group, so this is one process
def test_what_we_write_torch_saves_and_loads_and_the_other_way_round(tmp_path):
    Cluster(2).run(lambda group: save(tmp_path / "ours", 3, list(held(group, TENSORS)), {}, group))
    dcp.save(whole_tensors(complete(tmp_path / "ours")[0]), checkpoint_id=tmp_path / "torch", no_dist=True)
    there = {name: torch.zeros_like(x) for name, x in TENSORS.items()}
    dcp.load(there, checkpoint_id=tmp_path / "torch", no_dist=True)
    for name, x in TENSORS.items():
        assert torch.equal(there[name], x), name

    Cluster(1).run(lambda group: save(tmp_path / "back", 3, held_whole(there), {}, group))

    def read(group):
        mine = list(held(group, {name: torch.zeros_like(x) for name, x in TENSORS.items()}))
        load(complete(tmp_path / "back")[0], mine)
        return mine

    for mine in Cluster(4).run(read):
        for one in mine:
            for block, where in one.blocks():
                expected = TENSORS[one.name][block.inside(Block((0,) * len(one.whole), one.whole))]
                assert torch.equal(one.rows_held()[where], expected)
