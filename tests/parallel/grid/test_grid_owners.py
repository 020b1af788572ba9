"""The table of copies and sums, held against what gradients do; and sharding inside a node."""

import pytest
import torch
from parallel.grid.test_grid_trainer import BATCH, DENSE, EXPERTS, LENGTH, adam
from parallel.small_model import one_thread  # noqa: F401
from torch import nn

from lib import GPT, Cluster, average_gradients, clip_gradients, load_dense, shard_batch, whole_parameters
from lib.devices import Mesh
from lib.parallel.grid.config import ParallelConfig
from lib.parallel.grid.hybrid import HybridSharded
from lib.parallel.grid.ranks import RankGrid
from lib.parallel.grid.trainer import GridTrainer


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (ParallelConfig(dp=2, tp=2), DENSE),
        (ParallelConfig(pp=2, cp=2, tp=2, sequence_parallel=True), DENSE),
        (ParallelConfig(dp=4, ep=2, tp=2, sequence_parallel=True), EXPERTS),
    ],
    ids=["dense", "sequence and context", "experts"],
)
def test_copies_differ_before_the_sum_where_the_table_says_so_and_never_after(config, model):
    """The table is computed from layouts. Here each device's gradients are compared along every axis."""

    def program(group):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        trainer = GridTrainer(group, config, model, BATCH, LENGTH, adam)
        tokens = torch.randint(10, (2, BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
        trainer.backward(*tokens)
        before = {owner.name: owner.parameter.grad.clone() for owner in trainer.owners}
        trainer.reduce()
        return trainer.groups.at, [
            (owner.name, owner.sizes, owner.summed, before[owner.name], owner.parameter.grad)
            for owner in trainer.owners
        ]

    found = Cluster(config.devices).run(program)
    grid = RankGrid.of(config)
    for axis, size in grid.axes:
        for ranks in grid.groups(axis):
            first, *others = [found[rank][1] for rank in ranks]
            for mine in others:
                held = {name: row for name, *row in mine}
                for name, sizes, summed, before, after in first:
                    if axis not in sizes or name not in held or axis == "pp" or size == 1:
                        continue
                    differs = not torch.allclose(before, held[name][2], rtol=1e-9, atol=1e-13)
                    assert differs == (summed.get(axis) == "step"), (axis, name)
                    assert torch.allclose(after, held[name][3], rtol=1e-9, atol=1e-13), (axis, name)
    if config.pp == 1:
        return
    first, last = found[0][1], found[grid.group_of(0, "pp")[-1]][1]
    ends = [{name: row for name, *row in end}["embedding.weight"] for end in (first, last)]
    assert ends[0][1]["pp"] == "ends"
    assert not torch.allclose(ends[0][2], ends[1][2])
    assert torch.allclose(ends[0][3], ends[1][3])


def test_hybrid_sharding_is_one_device():
    """4 devices in 2 nodes of 2, three steps with clipping; each holds half of the weights."""
    state = {name: torch.randn(shape).double() * 0.2 for name, shape in DENSE.shapes().items()}
    texts = torch.randint(10, (3, 2, BATCH, LENGTH))

    def program(group, how):
        gpt = GPT(DENSE, group.split(group.size)).double()
        load_dense(gpt, state, group.split(group.size))
        mesh = Mesh(group, replicas=2, shards=group.size // 2) if how == "hybrid" else None
        hybrid = HybridSharded(gpt, mesh.shards, mesh.replicas, layers=gpt.blocks) if mesh else None
        optimizer = adam(gpt.parameters())
        norms = []
        for tokens, targets in texts:
            optimizer.zero_grad()
            mine = slice(group.rank * BATCH // group.size, (group.rank + 1) * BATCH // group.size)
            gpt(tokens[mine], targets[mine]).backward()
            if hybrid:
                hybrid.average_gradients()
            else:
                average_gradients(gpt, group)
            norms.append(float(clip_gradients(gpt, mesh.shards if mesh else group, 0.5)))
            optimizer.step()
        return norms, whole_parameters(gpt), sum(p.numel() for p in gpt.parameters())

    norms, weights, whole = Cluster(1).run(program, "plain")[0]
    for found, theirs, held in Cluster(4).run(program, "hybrid"):
        assert found == pytest.approx(norms, abs=1e-12)
        assert max((theirs[name] - p).abs().max() for name, p in weights.items()) < 1e-9
        assert abs(held - whole / 2) < 0.01 * whole


def test_hybrid_sharding_where_replicas_leave_out_layers():
    """Stochastic depth: pieces of one layer must not be added to those of another, though they fit."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, left_out):
            x = x if left_out == 0 else x + self.a(x)
            return self.last(x if left_out == 1 else x + self.b(x))

    x = torch.linspace(-1, 1, 32).view(2, 4, 4).sin()

    def program(group, **options):
        mesh = Mesh(group, replicas=2, shards=2)
        model = Two()
        hybrid = HybridSharded(model, mesh.shards, mesh.replicas, layers=[model.a, model.b, model.last])
        model(shard_batch(x[mesh.replicas.rank], mesh.shards), mesh.replicas.rank).square().sum(1).mean().backward()
        hybrid.average_gradients(**options)
        return torch.cat([mesh.shards.all_gather(p.grad.detach()) for p in model.parameters()])

    dense = Two()
    sum(dense(x[i], i).square().sum(1).mean() / 2 for i in range(2)).backward()
    right = torch.cat([p.grad.flatten() for p in dense.parameters()])
    for found in Cluster(4).run(program, allow_unused=True):
        torch.testing.assert_close(found, right)
    with pytest.raises(ValueError, match=r"no gradient reached [ab].weight, [ab].bias.* allow_unused=True"):
        Cluster(4).run(program)
