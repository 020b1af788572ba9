"""All experts of a device in one product: a grouped GEMM, and what it replaces.

The rows of a device lie expert by expert, and how many there are for each is decided by the data. Three ways to
multiply each group of rows with a matrix of its own:

    a loop         one product for each expert: many small kernels, each to be started
    padded         every group filled up with zeros to the longest: one batched product, but of E x the longest rows
    grouped GEMM   one kernel that is told where each group ends

PyTorch has the last as `torch.nn.functional.grouped_mm`. MegaBlocks: Gale et al. 2022, arXiv 2211.15841.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.parallel.experts.mlp import Experts

KNOWN = (torch.float32, torch.bfloat16, torch.float16)  # to PyTorch's kernel


class GroupedExperts(Experts):
    """`Experts` whose two or three products are one kernel each. Raises ValueError for float64: there is no kernel."""

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """As `Experts.forward`."""
        if x.dtype not in KNOWN:
            raise ValueError(
                f"GroupedExperts: rows of {x.dtype}; PyTorch's grouped_mm knows {', '.join(map(str, KNOWN))}. Bring "
                "the layer and its input to one of these, or use Experts"
            )
        ends = torch.tensor(counts, device=x.device).cumsum(0).to(torch.int32)  # (E/P,)  where each group ends
        y = _grouped(x, self.up, ends)  # (A, inner/tp)
        y = F.silu(_grouped(x, self.gate, ends)) * y if self.gated else F.gelu(y)
        return _grouped(y, self.down, ends)


def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """(A, in) and (E/P, out, in) -> (A, out)."""
    return F.grouped_mm(x, weight.mT, offs=ends)


class PaddedExperts(Experts):
    """`Experts` as batched products of blocks that are all as long as the longest."""

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """As `Experts.forward`."""
        blocks = x.new_zeros(len(counts), max(counts), x.shape[1])  # (E/P, longest, hidden)
        expert = torch.arange(len(counts), device=x.device).repeat_interleave(torch.tensor(counts, device=x.device))
        place = torch.cat([torch.arange(count, device=x.device) for count in counts])
        blocks = blocks.index_put((expert, place), x)
        y = blocks @ self.up.mT
        y = F.silu(blocks @ self.gate.mT) * y if self.gated else F.gelu(y)
        return (y @ self.down.mT)[expert, place]


def padded_share(counts: list[int]) -> float:
    """Rows of the padded blocks over rows that are there: how many times the work."""
    return len(counts) * max(counts) / max(1, sum(counts))
