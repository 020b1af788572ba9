"""All-reduce of sparse tensors, as gloo does it: indices and values of all go to everybody, who adds up what meets.

DDP sends such tensors for the gradient of an `nn.Embedding(sparse=True)`.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lib.guest.operations import Reduction
from lib.guest.uneven import KnownAllGather, expecting
from lib.guest.work import Works

if TYPE_CHECKING:
    from lib.guest.meeting import Meeting


def all_reduce(group: "Meeting", x: Tensor, r: Reduction, opts: Any) -> list[Works | None]:
    """Starts to add the sparse tensors `x` of all devices into each `x`. ValueError when they shall not be added."""
    if r.name != "sum" or r.factor is not None:
        raise ValueError(
            f"rank {group.rank()}: all_reduce of a sparse tensor by another op than SUM. Add them up, as gloo does, or "
            "pass x.to_dense()"
        )
    mine = x.detach().coalesce()
    indices = []

    def write(values: Tensor) -> None:
        (places,) = indices  # (elements of all devices, dims)
        total = torch.sparse_coo_tensor(places.t(), values, x.shape, check_invariants=False).coalesce()
        with torch.no_grad():
            x.copy_(r.scaled(total))  # not into x.detach(), which would get elements of its own

    return [
        group._meet(KnownAllGather(0), expecting(part, []), then, [x], opts)
        for part, then in ((mine.indices().t(), indices.append), (mine.values(), write))
    ]
