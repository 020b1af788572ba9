"""The ways that bytes take: what each device sends and receives on a trip round the ring, along a chain, from a star.

P is the number of devices in the group, N the bytes of one whole tensor.
"""

from typing import NamedTuple

from torch import Tensor

from lib.devices.pieces import shard_sizes


class Traffic(NamedTuple):
    """What one device moves in one call: messages, and bytes."""

    messages_sent: int = 0
    bytes_sent: int = 0
    messages_received: int = 0
    bytes_received: int = 0


def size_in_bytes(x: Tensor) -> int:
    """Bytes of the elements of `x` (of the view, not of the memory behind it)."""
    return x.numel() * x.element_size()


def ring(sizes: list[int], skip_sent: int, skip_received: int) -> list[Traffic]:
    """One trip round the ring in P-1 steps: device r sends every piece but number r + `skip_sent`, and receives
    every piece but number r + `skip_received`. `sizes` are the bytes of the pieces."""
    parts, whole = len(sizes), sum(sizes)
    return [
        Traffic(
            parts - 1, whole - sizes[(r + skip_sent) % parts], parts - 1, whole - sizes[(r + skip_received) % parts]
        )
        for r in range(parts)
    ]


def piece_bytes(x: Tensor, parts: int, dim: int) -> list[int]:
    """Bytes of the pieces of `x` cut along `dim`."""
    per_index = size_in_bytes(x) // max(x.shape[dim], 1)
    return [size * per_index for size in shard_sizes(x.shape[dim], parts)]


def chain(whole: int, parts: int, first: int) -> list[Traffic]:
    """`whole` bytes handed on from device to device, from `first` all the way round: P-1 hops."""
    traffic = []
    for r in range(parts):
        place = (r - first) % parts
        sends, receives = int(place < parts - 1), int(place > 0)
        traffic.append(Traffic(sends, sends * whole, receives, receives * whole))
    return traffic


def star(sizes: list[int], center: int) -> list[Traffic]:
    """Device `center` sends to each other device r its piece of sizes[r] bytes."""
    traffic = [Traffic(0, 0, 1, size) for size in sizes]
    traffic[center] = Traffic(len(sizes) - 1, sum(sizes) - sizes[center], 0, 0)
    return traffic
