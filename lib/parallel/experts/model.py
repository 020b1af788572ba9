"""The book's GPT with experts in the place of every MLP, under expert x data x tensor parallelism."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lib.devices import Group
from lib.parallel.attention.cache import KVCache
from lib.parallel.experts.balance import balance_loss, update_bias, z_loss
from lib.parallel.experts.grid import ExpertGrid, ShardExperts, as_grid
from lib.parallel.experts.layer import MixtureOfExperts, Seen
from lib.parallel.experts.router import ExpertChoiceRouter, Router, RoutingRule
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT
from lib.parallel.sharding.dense import equal_copies, layout_of


@dataclass(frozen=True)
class ExpertGPTConfig(GPTConfig):
    """A GPT whose MLPs are `experts` of size `inner` (None: 4 hidden), `k` of them for each token.

    `balance` and `z` weigh the two losses of each layer, `bias_rate` is that of `update_bias`; 0 leaves it out.
    """

    experts: int = 8
    k: int = 2
    inner: int | None = None
    capacity_factor: float | None = None
    shared: int = 0
    balance: float = 0.0
    z: float = 0.0
    bias_rate: float = 0.0
    expert_choice: bool = False

    @property
    def rule(self) -> RoutingRule:
        """As Mixtral routes: the softmax over all experts, the k best, gates that sum to 1."""
        return RoutingRule(self.experts, self.k)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight of the dense model, by name."""
        h, inner = self.hidden, self.inner or 4 * self.hidden
        shapes = {name: shape for name, shape in super().shapes().items() if ".mlp." not in name}
        for i in range(self.layers):
            mlp = f"blocks.{i}.mlp"
            shapes[f"{mlp}.router.weight"] = (self.experts, h)
            shapes |= {f"{mlp}.experts.up": (self.experts, inner, h), f"{mlp}.experts.down": (self.experts, h, inner)}
            if self.shared:
                width = inner * self.shared
                shapes |= {f"{mlp}.shared.up": (1, width, h), f"{mlp}.shared.down": (1, h, width)}
        return shapes


class ExpertGPT(GPT):
    """One device's part. Every device of the batch brings texts of its own; the experts are divided among them.

    Weights start as the pieces of one dense initialization, whatever the grid; `load_dense(model, state, model.group)`
    gives it others, and `expert_state` takes them out again. `generate` writes with it. Dropout must differ between the
    devices of the batch: see `different_random`. `options` are those of `GPT`.
    """

    def __init__(self, config: ExpertGPTConfig, group: Group | ExpertGrid, **options: Any):
        grid = as_grid(group)
        self.Block = type("ExpertBlock", (self.Block,), {"MLP": staticmethod(partial(_experts, config, grid))})
        super().__init__(config, grid.tensor, **options)
        self.grid = grid
        with torch.no_grad():
            for layer in self.layers_of_experts():
                layer.router.bias.zero_()
                for mlp in (layer.experts, layer.shared):
                    if mlp is not None:  # 2 x layers outputs add up on the residual, as everywhere in GPT-2
                        mlp.down /= math.sqrt(2 * config.layers)

    def next_logits(self, tokens: Tensor, caches: Sequence[KVCache] | None = None) -> Tensor:
        """As of `GPT`. Each device of the batch may write a text of its own, but all must write as many tokens.

        Raises ValueError where experts choose: they look at tokens that are not written yet.
        """
        if self.config.expert_choice:
            raise ValueError(
                f"ExpertGPT on rank {self.grid.everyone.rank} of {self.grid.everyone.size}: with expert choice a "
                "token's experts depend on the tokens after it, and a text that is being written has none; train with "
                "expert_choice=False to generate"
            )
        return super().next_logits(tokens, caches)

    def layers_of_experts(self) -> list[MixtureOfExperts]:
        """One for each block."""
        return [block.mlp for block in self.blocks]

    def seen(self) -> list[Seen]:
        """What the last forward did in each layer."""
        return [layer.seen for layer in self.layers_of_experts()]

    def extra_loss(self) -> Tensor:
        """() Partial(mean) over the batch: the balance and z-losses of all layers of the last forward, weighed."""
        config = self.config
        return sum(config.balance * balance_loss(seen) + config.z * z_loss(seen) for seen in self.seen())

    def update_biases(self) -> None:
        """After a step, where there is a `bias_rate`: by the loads of the last forward."""
        for layer in self.layers_of_experts():
            update_bias(layer.router, layer.seen, self.config.bias_rate)


def expert_state(models: Sequence[ExpertGPT]) -> dict[str, Tensor]:
    """The state dict of the dense model, from the models of all devices in rank order. For use outside of a program.

    Raises ValueError when copies that must be equal are not.
    """
    grid, state = models[0].grid, {}
    one_set = grid.experts.size * grid.tensor.size
    for name in models[0].state_dict():
        layout = layout_of(models[0], name)
        divided = isinstance(layout, ShardExperts)
        pieces = [model.state_dict()[name] for model in models]
        state[name] = layout.whole(pieces[:one_set] if divided else pieces[: grid.tensor.size])
        each = one_set if divided and layout.experts > 1 else grid.tensor.size
        for rank, piece in enumerate(pieces):
            if not equal_copies(piece, pieces[rank % each]):
                raise ValueError(f"expert_state: {name} on rank {rank} differs from the copies of it on other devices")
    return state


def _experts(config: ExpertGPTConfig, grid: ExpertGrid, hidden: int, _: Group, approximate: str) -> MixtureOfExperts:
    return MixtureOfExperts(
        hidden,
        config.inner or 4 * hidden,
        config.rule,
        grid,
        capacity_factor=config.capacity_factor,
        shared=config.shared,
        router=ExpertChoiceRouter if config.expert_choice else Router,
    )
