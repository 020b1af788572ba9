"""The algorithms that the meters charge for, carried out step by step: every hop is made, with real numbers on it.

Written apart from the library, so that its formulas are checked against something that visibly works: each function
returns what the devices hold at the end, and a Wire that has counted what went over it.
"""

import torch


class Wire:
    """Counts what each device puts on the wire and takes from it."""

    def __init__(self, size):
        self.size = size
        self.sent = [[0, 0] for _ in range(size)]  # messages, bytes
        self.received = [[0, 0] for _ in range(size)]

    def carry(self, src, dst, x):
        x = x.clone()
        for end in (self.sent[src], self.received[dst]):
            end[0] += 1
            end[1] += x.numel() * x.element_size()
        return x

    def row(self, rank):
        return (*self.sent[rank], *self.received[rank])


def ring_reduce_scatter(wire, pieces):
    """pieces[r][j]: piece j of what device r brings. Afterwards device r holds the sum of all pieces r."""
    size = wire.size
    held = [[piece.clone() for piece in row] for row in pieces]
    for step in range(size - 1):
        moves = [(r, (r + 1) % size, (r - 1 - step) % size) for r in range(size)]
        arrived = [wire.carry(src, dst, held[src][piece]) for src, dst, piece in moves]
        for (_, dst, piece), x in zip(moves, arrived, strict=True):
            held[dst][piece] = held[dst][piece] + x
    return [held[r][r] for r in range(size)]


def ring_all_gather(wire, own):
    """own[r]: the piece of device r. Afterwards every device holds all of them."""
    size = wire.size
    held = [{r: own[r]} for r in range(size)]
    for step in range(size - 1):
        moves = [(r, (r + 1) % size, (r - step) % size) for r in range(size)]
        arrived = [wire.carry(src, dst, held[src][piece]) for src, dst, piece in moves]
        for (_, dst, piece), x in zip(moves, arrived, strict=True):
            held[dst][piece] = x
    return [[held[r][piece] for piece in range(size)] for r in range(size)]


def ring_all_reduce(wire, tensors):
    """A reduce-scatter of the flattened tensors, then an all-gather."""
    pieces = [x.reshape(-1).tensor_split(wire.size) for x in tensors]
    gathered = ring_all_gather(wire, ring_reduce_scatter(wire, pieces))
    return [torch.cat(row).reshape(tensors[0].shape) for row in gathered]


def pairwise(wire, pieces):
    """pieces[r][j] goes from device r straight to device j."""
    size = wire.size
    arrived = [[pieces[dst][dst]] * size for dst in range(size)]
    for step in range(1, size):
        for src in range(size):
            dst = (src + step) % size
            arrived[dst][src] = wire.carry(src, dst, pieces[src][dst])
    return arrived


def chain_broadcast(wire, x, src):
    """Each device hands the tensor on to its neighbor."""
    held = {src: x}
    for hop in range(wire.size - 1):
        giver, taker = (src + hop) % wire.size, (src + hop + 1) % wire.size
        held[taker] = wire.carry(giver, taker, held[giver])
    return [held[r] for r in range(wire.size)]


def chain_reduce(wire, tensors, dst):
    """Each device adds its tensor to what comes, and hands the sum on; the last is dst."""
    total = tensors[(dst + 1) % wire.size]
    for hop in range(1, wire.size):
        giver, taker = (dst + hop) % wire.size, (dst + hop + 1) % wire.size
        total = wire.carry(giver, taker, total) + tensors[taker]
    return total


def rounds_of_barrier(wire):
    """In round k each device tells the one 2**k ahead of it, until everybody has heard of everybody."""
    heard = [{r} for r in range(wire.size)]
    ahead = 1
    while any(len(names) < wire.size for names in heard):
        before = [set(names) for names in heard]
        for src in range(wire.size):
            wire.carry(src, (src + ahead) % wire.size, torch.empty(0))
            heard[(src + ahead) % wire.size] |= before[src]
        ahead *= 2
