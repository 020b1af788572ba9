"""Our layer of experts against transformers' Mixtral and DeepSeek-V3 blocks, made from a config, on P devices.

Their routers compute in float32, whatever the dtype of the model: so the gates agree to float32, and no better.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config, MixtralConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from lib import load_dense
from lib.devices import Cluster
from lib.parallel.experts.gradients import sum_gradients
from lib.parallel.experts.grid import ExpertGrid
from lib.parallel.experts.layer import MixtureOfExperts
from lib.parallel.experts.nodes import NodeFirstExperts
from lib.parallel.experts.router import RoutingRule

HIDDEN, INNER, EXPERTS, TOKENS = 16, 12, 8, 21


@dataclass(frozen=True)
class Case:
    theirs: torch.nn.Module
    rule: RoutingRule
    shared: int = 0


def mixtral() -> Case:
    config = MixtralConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS, num_experts_per_tok=2
    )
    return Case(filled(MixtralSparseMoeBlock(config)), RoutingRule(EXPERTS, 2))


def deepseek() -> Case:
    config = DeepseekV3Config(
        hidden_size=HIDDEN,
        moe_intermediate_size=INNER,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        n_shared_experts=2,
        routed_scaling_factor=2.5,
    )
    block = filled(DeepseekV3MoE(config))
    block.gate.e_score_correction_bias.copy_(torch.linspace(-0.2, 0.2, EXPERTS))
    rule = RoutingRule(EXPERTS, 3, "sigmoid", scale=2.5, nodes=4, node_limit=2, best=2)
    return Case(block, rule, shared=2)


def filled(block: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(4)
    block = block.double()
    for p in block.parameters():
        p.data.normal_(std=0.4)
    return block


def as_ours(case: Case, of_gradients: bool = False) -> dict[str, Tensor]:
    """Their weights, or their gradients, under our names."""
    named = {name: p.grad if of_gradients else p.detach() for name, p in case.theirs.named_parameters()}
    gate, up = named["experts.gate_up_proj"].chunk(2, 1)
    found = {"router.weight": named["gate.weight"], "experts.gate": gate, "experts.up": up}
    found["experts.down"] = named["experts.down_proj"]
    if case.shared:
        found |= {
            f"shared.{name}": named[f"shared_experts.{name}_proj.weight"][None] for name in ("gate", "up", "down")
        }
    if not of_gradients:
        bias = getattr(case.theirs.gate, "e_score_correction_bias", torch.zeros(EXPERTS))
        found["router.bias"] = bias.double()
    return found


def ours(group, case: Case, x: Tensor, above: Tensor, kind, *grid: int):
    grid = ExpertGrid.over(group, *grid)
    layer = kind(HIDDEN, INNER, case.rule, grid, gated=True, shared=case.shared).double()
    load_dense(layer, as_ours(case), group)
    mine = x.tensor_split(grid.batch.size)[grid.batch.rank].clone().requires_grad_()
    y = layer(mine)
    y.backward(above.tensor_split(grid.batch.size)[grid.batch.rank])
    sum_gradients(layer, grid)
    grads = {name: p.grad for name, p in layer.named_parameters()}
    layouts = {name: getattr(layer.get_submodule(name.split(".")[0]), "layout", {}) for name in grads}
    return y.detach(), mine.grad, grads, layouts


@pytest.mark.parametrize(
    ("make", "size", "grid", "kind"),
    [
        (mixtral, 1, (), MixtureOfExperts),
        (mixtral, 4, (), MixtureOfExperts),
        (mixtral, 4, (2, 2), MixtureOfExperts),
        (deepseek, 1, (), MixtureOfExperts),
        (deepseek, 8, (), MixtureOfExperts),
        (deepseek, 8, (2, 2), MixtureOfExperts),
        (deepseek, 8, (), NodeFirstExperts),
    ],
)
def test_loaded_and_equal(make, size, grid, kind):
    case = make()
    x, above = torch.randn(2, TOKENS, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).unbind()
    theirs = x.clone().requires_grad_()
    expected = case.theirs(theirs[None])[0]
    expected.backward(above)
    each = Cluster(size).run(ours, case, x, above, kind, *grid)
    tensor = grid[1] if grid else 1
    found = {key: torch.cat([one[i] for one in each[::tensor]]) for i, key in enumerate(("output", "input"))}
    for name, grad in each[0][2].items():
        layout = each[0][3][name].get(name.split(".")[1])
        found[name] = layout.whole([one[2][name] for one in each]) if layout else grad
    whole = {"output": expected.detach(), "input": theirs.grad} | as_ours(case, of_gradients=True)
    assert found.keys() == whole.keys()
    for name, right in whole.items():
        assert float((found[name] - right).abs().max() / right.abs().max()) < 2e-6, name


def test_their_blocks_route_as_we_think():
    """Limits that do nothing would make the test above weak: without the nodes' limit, other experts are chosen."""
    case = deepseek()
    x = torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    _, _, chosen = case.theirs.gate(x)
    assert all(len(set((row // 2).tolist())) <= 2 for row in chosen)
    scores = (x @ case.theirs.gate.weight.T).sigmoid() + case.theirs.gate.e_score_correction_bias
    free = scores.topk(3, -1).indices
    assert any(set(a.tolist()) != set(b.tolist()) for a, b in zip(chosen, free, strict=True))
