"""How many rows each expert gets, and which choices are dropped when it has room for no more.

A fixed capacity gives every expert the same shape of work, and bounds what the busiest device does. The price: choices
beyond it are dropped, and the token passes by on the residual alone. Without a capacity nothing is dropped
("dropless"), and the busiest expert sets the pace.

Who is dropped must not depend on the number of devices. So the queue of an expert is that of the whole batch: first
the tokens of rank 0, in their order, then those of rank 1. Each device knows its places in the queue once it knows how
many rows the devices before it bring: an all-gather of E numbers. The same table says what will be sent to whom, and
what the loads are. Lepikhin et al. 2020, arXiv 2006.16668, section 2.2 (GShard).
"""

from math import ceil

import torch
from torch import Tensor

from lib.devices import Group
from lib.devices.pieces import shard_sizes
from lib.parallel.sharding.named import named


def capacity_for(tokens: int, k: int, experts: int, factor: float) -> int:
    """Rows that each expert takes of the whole batch: `factor` times an even share, rounded up.

    Raises ValueError unless `factor` is above 0.
    """
    if not factor > 0:
        raise ValueError(f"a capacity factor of {factor} leaves no expert a token: it must be above 0; 1 is even")
    return ceil(factor * k * tokens / experts)


@named
def count_rows(chosen: Tensor, experts: int) -> Tensor:
    """(n, k) -> (E,): how many of these choices are for each expert. On meta, where no one knows: even."""
    if chosen.is_meta:
        return torch.tensor(shard_sizes(chosen.numel(), experts), device="cpu")
    return torch.bincount(chosen.flatten() + 1, minlength=experts + 1)[1:]  # the first counts NOWHERE


@named
def rows_of_all(counts: Tensor, group: Group) -> Tensor:
    """(E,) of this device -> (P, E) of all. One all-gather of 8 E bytes from each device."""
    return group.all_gather(counts[None])


@named
def keep_first(chosen: Tensor, everyone: Tensor, rank: int, capacity: int) -> tuple[Tensor, Tensor]:
    """The first `capacity` rows of each expert, in the order of the whole batch.

    chosen (n/P, k) of device `rank`, everyone (P, E) -> chosen with NOWHERE in the place of what is dropped, and the
    (P, E) rows that are kept.
    """
    before = everyone.cumsum(0) - everyone  # (P, E)  rows that stand before this device's own
    kept = (capacity - before).clamp(min=0).minimum(everyone)
    if chosen.is_meta:
        return chosen, kept
    return chosen.where(places(chosen, everyone.shape[1]) < kept[rank][chosen], -1), kept


def places(chosen: Tensor, experts: int) -> Tensor:
    """(n, k) -> (n, k): how many of these choices for the same expert come before this one."""
    flat = chosen.flatten() + 1
    order = flat.argsort(stable=True)  # by expert; stable, so within it by token
    counts = torch.bincount(flat, minlength=experts + 1)
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(flat)
    place[order] = torch.arange(len(flat), device=flat.device) - starts[flat[order]]
    return place.view_as(chosen)
