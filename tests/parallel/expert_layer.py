"""A layer of experts on any grid, put together again: what tests compare with one device and with a plain loop."""

import torch
from torch.nn import functional as F

from lib.devices import Cluster
from lib.parallel.experts.capacity import capacity_for
from lib.parallel.experts.gradients import sum_gradients
from lib.parallel.experts.grid import ExpertGrid
from lib.parallel.experts.layer import MixtureOfExperts
from lib.parallel.sharding.dense import layout_of

HIDDEN, INNER, TOKENS = 12, 8, 37
GRIDS = [(2, 2, 1), (3, 3, 1), (4, 4, 1), (5, 5, 1), (6, 6, 1), (4, 1, 1), (4, 2, 1), (4, 2, 2), (8, 2, 2), (8, 4, 2)]


def one_step(group, rule, x, above, expert_parallel, tensor_parallel, kind=MixtureOfExperts, sums=True, **options):
    """This device's output, input gradient, gradients by name with their layouts, and what was seen."""
    grid = ExpertGrid.over(group, expert_parallel, tensor_parallel)
    torch.manual_seed(0)
    layer = kind(HIDDEN, INNER, rule, grid, **options).double()
    mine = x.tensor_split(grid.batch.size)[grid.batch.rank].clone().requires_grad_()
    y = layer(mine)
    y.backward(above.tensor_split(grid.batch.size)[grid.batch.rank])
    if sums:
        sum_gradients(layer, grid)
    grads = {name: (p.grad, layout_of(layer, name)) for name, p in layer.named_parameters()}
    return {"output": y.detach(), "input": mine.grad, "grads": grads, "seen": layer.seen}


def together(size, *arguments, tensor_parallel=1, expert_parallel=None, **options):
    """All tensors of `size` devices by name, as one device would have them, and what each device saw."""
    cluster = Cluster(size)
    each = cluster.run(one_step, *arguments, expert_parallel or size // tensor_parallel, tensor_parallel, **options)
    found = {key: torch.cat([one[key] for one in each[::tensor_parallel]]) for key in ("output", "input")}
    for name, (_, layout) in each[0]["grads"].items():
        found[name] = layout.whole([one["grads"][name][0] for one in each])
    return found, [one["seen"] for one in each], cluster


def inputs(tokens=TOKENS, seed=1):
    """x and the gradient from above, each (T, hidden)."""
    return torch.randn(2, tokens, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind()


def plain_loop(rule, x, above, gated=False, shared=0, capacity_factor=None):
    """The oracle: one token after the other, one choice after the other, nothing sorted, nothing sent."""
    torch.manual_seed(0)
    layer = Cluster(1).run(
        lambda group: MixtureOfExperts(HIDDEN, INNER, rule, group, gated=gated, shared=shared).double()
    )[0]
    weights = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    x = x.clone().requires_grad_()

    def mlp(which, row, number):
        up = weights[f"{which}.up"][number] @ row
        inside = F.silu(weights[f"{which}.gate"][number] @ row) * up if gated else F.gelu(up)
        return weights[f"{which}.down"][number] @ inside

    room = len(x) * rule.k if capacity_factor is None else capacity_for(len(x), rule.k, rule.experts, capacity_factor)
    taken = [0] * rule.experts
    rows = []
    for row in x:
        logits = weights["router.weight"] @ row
        scores = logits.softmax(0) if rule.score == "softmax" else logits.sigmoid()
        best = sorted(range(rule.experts), key=lambda e: -float(scores[e]))[: rule.k]
        total = sum(scores[e] for e in best) if rule.normalize else 1
        out = torch.zeros(HIDDEN, dtype=torch.float64)
        for e in best:
            taken[e] += 1
            if taken[e] <= room:
                out = out + rule.scale * scores[e] / total * mlp("experts", row, e)
        rows.append(out + mlp("shared", row, 0) if shared else out)
    y = torch.stack(rows)
    y.backward(above)
    return {"output": y.detach(), "input": x.grad} | {name: w.grad for name, w in weights.items()}


def assert_same(found, expected, tolerance=1e-12):
    assert found.keys() == expected.keys()
    for name, whole in expected.items():
        assert found[name].shape == whole.shape, name
        assert float((found[name] - whole).abs().max()) <= tolerance, name
