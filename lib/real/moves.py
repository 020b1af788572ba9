"""How real processes do each verb with torch.distributed: the counterpart of the `results` of `collectives.py`.

All know what the others bring (`Announcement`), so pieces may be uneven. Where torch.distributed has the verb, it does
it. It has none for uneven pieces, nor sums of rare dtypes: there, what is needed travels by `all_to_all_single`, and is
joined or added up here, in rank order.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lib.devices.collectives import AllGather, AllReduce, AllToAll, Collective, ReduceScatter, combine
from lib.devices.pieces import cut
from lib.devices.rooted import Barrier, Broadcast, Gather, Reduce, Scatter
from lib.real.announcement import Announcement

OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
# What gloo and NCCL both know how to add.
_SUMMED = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
}


def perform(verb: Collective, x: Tensor | None, announced: list[Announcement], pg: dist.ProcessGroup) -> Tensor | None:
    """What this process gets from `verb`, of which all have `announced` their part. `pg` connects the group."""
    if isinstance(verb, Barrier):
        return None  # all have announced it, so all have come
    rank, size = pg.rank(), pg.size()
    shapes = [a.shape for a in announced]
    brought = next(a for a in announced if a.shape is not None)
    if brought.device == "meta":
        return verb.outcome([a.without_data() for a in announced])[rank]
    like = torch.empty(0, dtype=brought.dtype, device=brought.device) if x is None else x
    even = len(set(shapes)) == 1
    # Those two would pass over what is no number when they look for the largest.
    misses = isinstance(verb, AllReduce | Reduce | ReduceScatter) and verb.op != "sum" and like.is_floating_point()
    if misses or isinstance(verb, AllReduce | Reduce | ReduceScatter) and like.dtype not in _SUMMED:
        return verb.outcome(swap_pieces([x] * size, shapes, like, pg))[rank]
    match verb:
        case AllReduce(op):
            y = _copy(x)
            dist.all_reduce(y, OPS[op], group=pg)
            return y
        case Reduce(dst, op):
            y = _copy(x)
            dist.reduce(y, op=OPS[op], group=pg, group_dst=dst)
            return y if rank == dst else None
        case ReduceScatter(dim, op):
            pieces = cut(x, size, dim)
            if x.shape[dim] % size:
                return combine(swap_pieces(pieces, [pieces[rank].shape] * size, like, pg), op)
            y = like.new_empty(pieces[rank].shape)
            dist.reduce_scatter_single(y.view(-1), torch.cat([p.reshape(-1) for p in pieces]), OPS[op], group=pg)
            return y
        case AllGather(dim) if even:
            whole = like.new_empty(size, *x.shape)
            dist.all_gather_single(as_bytes(whole), as_bytes(x), group=pg)
            return torch.cat(list(whole), dim)
        case AllGather(dim):
            return torch.cat(swap_pieces([x] * size, shapes, like, pg), dim)
        case AllToAll(_, concat):
            brought_by = [torch.empty(shape, device="meta") for shape in shapes]
            arriving = [verb.pieces(y, r, size)[rank].shape for r, y in enumerate(brought_by)]
            return torch.cat(swap_pieces(verb.pieces(x, rank, size), arriving, like, pg), concat)
        case Broadcast(src):
            y = _copy(x) if rank == src else like.new_empty(shapes[src])
            dist.broadcast(as_bytes(y), group=pg, group_src=src)
            return y
        case Scatter(src, dim):
            arriving = [None] * size
            arriving[src] = _piece_shape(shapes[src], size, dim, rank)
            return swap_pieces(cut(x, size, dim) if rank == src else [None] * size, arriving, like, pg)[src]
        case Gather(dst, dim):
            leaving = [x if r == dst else None for r in range(size)]
            arrived = swap_pieces(leaving, shapes if rank == dst else [None] * size, like, pg)
            return torch.cat(arrived, dim) if rank == dst else None


def swap_pieces(
    leaving: Sequence[Tensor | None], arriving: Sequence[torch.Size | None], like: Tensor, pg: dist.ProcessGroup
) -> list[Tensor | None]:
    """Sends leaving[j] to process j and receives a tensor of shape arriving[i] from process i; None: nothing.

    Everything travels as bytes, so any dtype does: that of `like`.
    """
    bytes_to = [0 if x is None else x.numel() * x.element_size() for x in leaving]
    bytes_from = [0 if shape is None else shape.numel() * like.element_size() for shape in arriving]
    sent = [as_bytes(x) for x in leaving if x is not None]
    buffer = torch.empty(sum(bytes_from), dtype=torch.uint8, device=like.device)
    dist.all_to_all_single(buffer, torch.cat(sent) if sent else buffer.new_empty(0), bytes_from, bytes_to, group=pg)
    return [
        None if shape is None else part.view(like.dtype).view(shape)
        for part, shape in zip(buffer.split(bytes_from), arriving, strict=True)
    ]


def as_bytes(x: Tensor) -> Tensor:
    """The elements of `x` as (bytes,) uint8, in the same memory if it is contiguous."""
    x = x.resolve_conj().resolve_neg().contiguous()
    return x.as_strided((x.numel(),), (1,)).view(torch.uint8)


def _copy(x: Tensor) -> Tensor:
    # Verbs never write into the caller's tensor; those of torch.distributed do.
    return x.resolve_conj().clone(memory_format=torch.contiguous_format)


def _piece_shape(shape: torch.Size, parts: int, dim: int, rank: int) -> torch.Size:
    return cut(torch.empty(shape, device="meta"), parts, dim)[rank].shape
