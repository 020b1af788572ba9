"""All-reduce, written by hand with send and recv: four programs, one result, four prices.

`Group.all_reduce` is charged as the ring. These are for comparing and for learning. P is the size of the group, N the
bytes of the tensor; alpha is the latency of a message, beta the seconds per byte. All assume that a device sends one
message and receives one at a time, and that adding is free. Formulas: Thakur, Rabenseifner and Gropp 2005 (as in the
comments of MPICH's collectives); the ring: Patarasuk and Yuan 2009.
"""

from collections.abc import Callable
from math import ceil, log2

import torch
from torch import Tensor

from lib.devices.group import Group
from lib.devices.hardware import Link
from lib.devices.pieces import cut


def naive(group: Group, x: Tensor) -> Tensor:
    """All send everything to rank 0, which adds and sends the sum to all: it moves (P-1) N each way, the bottleneck."""
    if group.rank > 0:
        group.send(x, 0)
        return group.recv(0)
    total = x.clone()
    for src in range(1, group.size):
        total = total + group.recv(src)
    for dst in range(1, group.size):
        group.send(total, dst)
    return total


def ring(group: Group, x: Tensor) -> Tensor:
    """P pieces travel round the ring twice: once to be added, once to be handed out. 2(P-1)/P N per device."""
    piece = ring_reduce_scatter(group, x.flatten())
    return ring_all_gather(group, piece).reshape(x.shape)


def ring_reduce_scatter(group: Group, x: Tensor) -> Tensor:
    """The first trip: a piece starts behind its owner and collects a term at each hop. (n,) Partial -> Shard(0)."""
    ahead, behind = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    pieces = list(cut(x, group.size, 0))
    for hop in range(1, group.size):
        group.send(pieces[(group.rank - hop) % group.size], ahead)
        arriving = (group.rank - hop - 1) % group.size
        pieces[arriving] = pieces[arriving] + group.recv(behind)
    return pieces[group.rank].clone()


def ring_all_gather(group: Group, piece: Tensor) -> Tensor:
    """The second trip: pass on what arrived last. (n/P,) Shard(0) -> (n,) Replicate."""
    ahead, behind = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    pieces = [piece] * group.size
    for hop in range(group.size - 1):
        group.send(pieces[(group.rank - hop) % group.size], ahead)
        pieces[(group.rank - hop - 1) % group.size] = group.recv(behind)
    return torch.cat(pieces)


def tree(group: Group, x: Tensor) -> Tensor:
    """Up a binomial tree to rank 0 while adding, and down again: 2 ceil(log2 P) steps, each with the whole tensor."""
    distance = 1
    while distance < group.size:
        if group.rank % (2 * distance) == distance:
            group.send(x, group.rank - distance)
            break
        if group.rank + distance < group.size:
            x = x + group.recv(group.rank + distance)
        distance *= 2
    if group.rank > 0:
        x = group.recv(group.rank - distance)
    while distance > 1:
        distance //= 2
        if group.rank + distance < group.size:
            group.send(x, group.rank + distance)
    return x.clone()


def tree_broadcast(group: Group, x: Tensor | None, src: int = 0) -> Tensor:
    """Who has it tells one who has not; each step twice as many have it: ceil(log2 P) steps. -> Replicate."""
    place = (group.rank - src) % group.size  # counted from the source
    distance = 1
    while distance < group.size:
        if place < distance and place + distance < group.size:
            group.send(x, (group.rank + distance) % group.size)
        elif distance <= place < 2 * distance:
            x = group.recv((group.rank - distance) % group.size)
        distance *= 2
    return x.clone()


def halving_doubling(group: Group, x: Tensor) -> Tensor:
    """Exchange halves with a partner, then quarters, …, adding; then the way back: 2 log2 P steps and the bytes of the
    ring. For P a power of two.

    Raises ValueError for any other P.
    """
    if group.size & (group.size - 1):
        raise ValueError(
            f"halving_doubling on rank {group.rank} of {group.size}: the number of devices must be a power of two; "
            "use ring or tree for others"
        )
    pieces = [piece.clone() for piece in cut(x.flatten(), group.size, 0)]
    low, length = 0, group.size  # the pieces that this device still answers for
    while length > 1:
        length //= 2
        partner = group.rank ^ length
        keep, give = (low, low + length) if group.rank < partner else (low + length, low)
        group.send(_join(pieces[give : give + length]), partner)
        for i, piece in enumerate(_parts(group.recv(partner), pieces[keep : keep + length])):
            pieces[keep + i] = pieces[keep + i] + piece
        low = keep
    while length < group.size:
        partner = group.rank ^ length
        other = low + length if group.rank < partner else low - length
        group.send(_join(pieces[low : low + length]), partner)
        pieces[other : other + length] = _parts(group.recv(partner), pieces[other : other + length])
        low, length = min(low, other), 2 * length
    return _join(pieces, x)


def _join(pieces: list[Tensor], like: Tensor | None = None) -> Tensor:
    flat = torch.cat(pieces)
    return flat if like is None else flat.reshape(like.shape)


def _parts(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    return list(flat.split([len(piece) for piece in like]))


def seconds(algorithm: Callable[[Group, Tensor], Tensor], parts: int, whole: float, link: Link) -> float:
    """The closed formula: time of `algorithm` over `parts` devices for a tensor of `whole` bytes that `parts` divides.

    Raises ValueError for an algorithm that has no formula here.
    """
    steps = ceil(log2(parts))
    share = (parts - 1) / parts * whole
    formulas = {
        naive: link.seconds(2 * (parts - 1), 2 * (parts - 1) * whole),
        ring: link.seconds(2 * (parts - 1), 2 * share),
        tree: link.seconds(2 * steps, 2 * steps * whole),
        halving_doubling: link.seconds(2 * steps, 2 * share),
    }
    if algorithm not in formulas:
        raise ValueError(f"no formula for {algorithm!r}; there is one for {', '.join(f.__name__ for f in formulas)}")
    return formulas[algorithm]
