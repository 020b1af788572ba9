"""Which devices share what when experts are split: the groups of expert x data x tensor parallelism.

A device has tokens of its own, as in data parallelism. What is not an expert, it holds like all others; of the experts
it holds a few. So one gradient is summed over other devices than the next:

    batch       devices with different tokens: whatever every device holds is summed over these
    experts     those among whom one set of experts is divided; tokens travel between them
    replicas    those that hold the same experts: an expert's gradient is summed over these
    tensor      those that share each of its experts, and the same tokens

So batch = replicas x experts: expert parallelism takes no devices of its own, it cuts the data-parallel ones.
Singh et al. 2023, arXiv 2303.06318 ("A hybrid tensor-expert-data parallelism approach").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.devices import Group, Mesh
from lib.devices.counts import check_counts
from lib.devices.pieces import cut


@dataclass(frozen=True)
class ExpertGrid:
    """The groups of one device; make it with `ExpertGrid.over`."""

    everyone: Group
    batch: Group
    experts: Group
    replicas: Group
    tensor: Group

    @staticmethod
    def over(group: Group, expert_parallel: int | None = None, tensor_parallel: int = 1) -> "ExpertGrid":
        """The devices of `group`, neighbors sharing each expert, then those that divide the experts among them.

        `expert_parallel` is by how many devices one set of experts is divided; None: by all that tensor parallelism
        leaves. Raises ValueError when the sizes do not divide the number of devices.
        """
        ep = group.size // tensor_parallel if expert_parallel is None else expert_parallel
        check_counts("ExpertGrid", {"expert_parallel": ep, "tensor_parallel": tensor_parallel})
        if group.size % (ep * tensor_parallel):
            raise ValueError(
                f"ExpertGrid on rank {group.rank}: {group.size} devices cannot be divided into sets of expert_parallel="
                f"{ep} x tensor_parallel={tensor_parallel}; the product must divide {group.size}"
            )
        tokens = group.size // tensor_parallel
        mesh = Mesh(group, replicas=tokens // ep, experts=ep, tensor=tensor_parallel)
        batch = Mesh(group, batch=tokens, tensor=tensor_parallel).batch
        return ExpertGrid(group, batch, mesh.experts, mesh.replicas, mesh.tensor)


def as_grid(group: Group | ExpertGrid) -> ExpertGrid:
    """A group alone: every device of it has tokens of its own, and its part of the experts."""
    return group if isinstance(group, ExpertGrid) else ExpertGrid.over(group)


@dataclass(frozen=True)
class ShardExperts:
    """How a weight (E, ...) lies on a grid: its experts over `experts` devices, and of each the dim `dim` over `tensor`
    devices. `mine` is this device's place among the `experts`.

    It is asked for the pieces of all devices of the grid, or for those of this device's tensor group alone.
    """

    dim: int
    experts: int
    tensor: int
    mine: int

    def piece(self, whole: Tensor, parts: int, rank: int) -> Tensor:
        """What device `rank` of `parts` holds of `whole`: a view."""
        which = self.mine if parts == self.tensor else rank // self.tensor % self.experts
        return cut(cut(whole, self.experts, 0)[which], self.tensor, self.dim)[rank % self.tensor]

    def whole(self, pieces: Sequence[Tensor]) -> Tensor:
        """The weight, from the pieces of the whole grid. ValueError when there are not those of all experts."""
        one_set = self.experts * self.tensor
        if len(pieces) % one_set:
            raise ValueError(f"{len(pieces)} pieces are not those of all experts: {one_set} devices hold one set")
        each = [torch.cat(list(pieces[i : i + self.tensor]), self.dim) for i in range(0, one_set, self.tensor)]
        return torch.cat(each)
