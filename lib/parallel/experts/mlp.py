"""The experts of one device: small MLPs whose weights lie in one tensor, expert by expert."""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.parallel.experts.grid import ExpertGrid, ShardExperts
from lib.parallel.sharding.cuts import declare_cuts
from lib.parallel.sharding.named import named


class Experts(nn.Module):
    """This device's experts: up (E/P, inner, hidden), down (E/P, hidden, inner), and gate like up if `gated`.

    Expert e computes down(gelu(up(x))), or with a gate down(silu(gate(x)) * up(x)); there are no biases. Over the
    tensor group of the grid, `inner` is cut: then each device's answer is Partial.

    With `shared`, every device of the batch has all of them. Initialized as the pieces of the same dense weights,
    whatever the grid. Raises ValueError when the devices do not divide `inner`.
    """

    def __init__(
        self, hidden: int, inner: int, experts: int, grid: ExpertGrid, gated: bool = False, shared: bool = False
    ):
        super().__init__()
        tensor, ep = grid.tensor, 1 if shared else grid.experts.size
        if inner % tensor.size:
            raise ValueError(f"Experts: an inner size of {inner} cannot be split over {tensor.size} devices")
        mine = 0 if shared else grid.experts.rank
        shapes = {"gate": (inner, hidden)} if gated else {}
        shapes |= {"up": (inner, hidden), "down": (hidden, inner)}
        self.cut_over = [tensor] if shared else [grid.experts, tensor]
        self.layout = {name: ShardExperts(2 if name == "down" else 1, ep, tensor.size, mine) for name in shapes}
        for name, shape in shapes.items():
            whole = torch.empty(experts, *shape).uniform_(-1, 1) / sqrt(shape[1])
            piece = self.layout[name].piece(whole, grid.everyone.size, grid.everyone.rank)
            self.register_parameter(name, nn.Parameter(piece.clone(memory_format=torch.contiguous_format)))
        self.gated = gated
        declare_cuts(self)

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """(A, hidden), one expert's rows after the other's, `counts` of them each -> (A, hidden).

        An expert without rows works on none, so its gradient is zero and not missing.
        """
        gates = each_expert(self.gate) if self.gated else [None] * len(counts)
        each = zip(x.split(counts), gates, each_expert(self.up), each_expert(self.down), strict=True)
        return torch.cat([_mlp(rows, gate, up, down) for rows, gate, up, down in each])


@named
def each_expert(weight: Tensor) -> tuple[Tensor, ...]:
    """(E/P, out, in) -> the (out, in) of each expert that is here."""
    return weight.unbind()


def _mlp(x: Tensor, gate: Tensor | None, up: Tensor, down: Tensor) -> Tensor:
    y = F.linear(x, up)  # (rows, inner/tp)
    return F.linear(F.gelu(y) if gate is None else F.silu(F.linear(x, gate)) * y, down)
