"""The book's GPT with every way of splitting at once: a class that exists already for each, put together.

    tensor      `GPT`                            sequence    `SequenceGPT` in its place
    experts     `ExpertGPT` before it            context     ring attention, and `CutTexts` before all

They fit because each changes another place: the matrices, what lies between them, the MLP, the attention. Only where
two meet in one place something is to be said, and it is said here.
"""

from typing import Any

from torch import Tensor

from lib.parallel.context.ring import RingAttention
from lib.parallel.experts.grid import ExpertGrid
from lib.parallel.experts.model import ExpertGPT, ExpertGPTConfig
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT
from lib.parallel.grid.config import ParallelConfig
from lib.parallel.grid.ranks import GridGroups
from lib.parallel.sequence.model import TOKENS, SequenceBlock, SequenceGPT
from lib.parallel.sharding.conjugates import gather_from, scatter_to


class CutTexts(GPT):
    """A GPT that is handed whole texts and works on the tokens of this device alone."""

    ring: RingAttention | None = None  # None where a sequence is not cut

    def own(self, x: Tensor, dim: int = 1) -> Tensor:
        """The tokens of this device: Replicate -> cut along `dim` over the context group. Nothing is sent."""
        return x if self.ring is None else self.ring.own(x, dim)

    def embed(self, tokens: Tensor, seen: int = 0) -> Tensor:
        """(batch, S) -> (batch, n, hidden), or with sequence parallelism (batch, n/tp, hidden): at true positions."""
        if self.ring is None:
            return super().embed(tokens, seen)
        places = self.own(self.positions.weight[: tokens.shape[1]], 0)  # (n, hidden)
        return self.dropout(self.embedding(self.own(tokens)) + self.own_tokens(places))


class WholeExperts(SequenceBlock):
    """Experts want a token whole and once, and sequence parallelism has cut the tokens over the tensor group, whose
    devices share each expert. So all tokens are gathered before the experts, and each device takes its own after."""

    def _layer(self, x: Tensor, cache: Any) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), cache))  # (batch, n/tp, hidden)
        whole = gather_from(self.norm2(x), self.group, TOKENS)  # (batch, n, hidden)  Replicate
        return x + self.dropout(scatter_to(self.mlp(whole), self.group, TOKENS))


class GridGPT(CutTexts, GPT):
    """Tensor and context parallelism."""


class GridSequenceGPT(CutTexts, SequenceGPT):
    """With sequence parallelism."""


class GridExpertGPT(CutTexts, ExpertGPT):
    """With experts."""


class GridExpertSequenceGPT(CutTexts, ExpertGPT, SequenceGPT):
    """With both."""

    Block = WholeExperts


def expert_grid(groups: GridGroups) -> ExpertGrid:
    """The groups that layers of experts ask for. Devices with other tokens are those of dp and of cp; the holders of
    one set of experts must be neighbors among them, so ep is named last."""
    return ExpertGrid(
        groups.everyone,
        batch=groups.over("edp", "cp", "ep"),
        experts=groups.over("ep"),
        replicas=groups.over("edp", "cp"),
        tensor=groups.over("tp"),
    )


def grid_gpt(model: GPTConfig, config: ParallelConfig, groups: GridGroups, length: int) -> CutTexts:
    """This device's part of the GPT, all layers of it: `cut_gpt` takes those of its stages. For texts of `length`.

    Weights start as the pieces of one dense initialization, if all devices draw the same random numbers.
    Validate the grid before. Raises ValueError for dropout over cut sequences.
    """
    if config.cp > 1 and model.dropout:
        raise ValueError(f"grid_gpt: dropout={model.dropout} with cp={config.cp}; ring attention has none, set it to 0")
    ring = RingAttention(groups.over("cp"), length) if config.cp > 1 else None
    options: dict[str, Any] = {"recompute": config.recompute} | ({"attend": ring} if ring else {})
    if isinstance(model, ExpertGPTConfig):
        kind = GridExpertSequenceGPT if config.sequence_parallel else GridExpertGPT
        gpt = kind(model, expert_grid(groups), **options)
    else:
        kind = GridSequenceGPT if config.sequence_parallel else GridGPT
        gpt = kind(model, groups.over("tp"), **options)
    gpt.ring = ring
    return gpt
