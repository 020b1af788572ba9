"""`draw_heads`: which attention head lives on which device, how the fused weight is cut, and each device's cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree.ElementTree import Element

import torch

from book.pictures.kit.axis import readable
from book.pictures.kit.blocks import block, label, tag
from book.pictures.kit.holders import check_devices, stretch
from book.pictures.kit.legend import legend
from book.pictures.kit.svg import Picture, element, number
from lib.devices import Cluster, Group
from lib.devices.counts import counted
from lib.devices.pieces import cut
from lib.parallel.attention.attention import ParallelSelfAttention
from lib.parallel.attention.cache import KVCache
from lib.parallel.attention.heads import FusedHeads, check_heads, kv_copies

WIDTH, LEFT, RIGHT = 480, 8, 472
CELLS, ROOM = 96, 300  # where the heads of a device begin, and how much room they have
TALL, STRIP = 28, 15  # heights: of a piece of the fused weight; of one copy of several
MOST_DEVICES = 8


@dataclass(frozen=True)
class Holding:
    """What one device holds: numbers of heads, and its bytes of keys and values."""

    queries: list[int]
    common: list[int]  # heads of keys and values
    cache: int


def draw_heads(heads: int, kv_heads: int, devices: int, head_size: int = 64, positions: int = 1024) -> Picture:
    """The heads of every device, and the fused weight [queries | keys | values] cut per head and, wrongly, in equal
    pieces.

    Below each group of query heads stand the keys and values that they use; copies on several devices are outlined.
    The cache is that of one sequence of `positions` in bfloat16, as `KVCache` holds it.

    Errors: ValueError for heads that cannot be laid out over the devices, or more than 8 devices.
    """
    check_heads(heads * head_size, heads, kv_heads, check_devices(devices, MOST_DEVICES))
    rows = torch.arange((heads + 2 * kv_heads) * head_size)  # the rows of the fused weight, by number
    layout = FusedHeads(heads, kv_heads)
    right = [layout.piece(rows, devices, rank) for rank in range(devices)]
    caches = _cache_bytes(heads, kv_heads, devices, head_size, positions)
    holdings = [_holding(piece, heads, kv_heads, head_size, cache) for piece, cache in zip(right, caches, strict=True)]
    copies = kv_copies(kv_heads, devices)

    groups = f", {kv_heads} of keys and values" if kv_heads != heads else ""
    title = f"{counted(heads, 'head')}{groups}, on {counted(devices, 'device')}"
    body: list[Element | None] = [
        label(LEFT, 24, title, bold=True, size=15),
        label(RIGHT, 48, "cache", "end"),
        label(CELLS, 48, f"heads of {head_size}; cache of {positions:,} positions"),
    ]
    y = 58.0
    for rank, held in enumerate(holdings):
        body += _device(y, rank, held, copies)
        y += 66
    ends = [0, heads, heads + kv_heads, heads + 2 * kv_heads]
    bar = _Bar([end * head_size for end in ends])
    y += 10
    body += bar.draw(y, "Fused weight, cut per head: right (numbers are ranks)", right, copies)
    y += 44 + max(TALL, STRIP * copies)
    told = "; ".join(_says(rank, held) for rank, held in enumerate(holdings))
    desc = f"{title}. {told}. The fused weight has {len(rows)} rows: all queries, all keys, all values, cut per head."
    if devices > 1:
        wrong = list(cut(rows, devices, 0))
        body += bar.draw(y + 10, f"Fused weight, cut in {devices} equal pieces: wrong", wrong, 1)
        y += 54 + TALL
        missing = [name for name, start in zip(("keys", "values"), bar.ends[1:], strict=False) if wrong[0][-1] < start]
        lacks = f"rank 0 would have no {' and no '.join(missing)}."
        body.append(label(LEFT, y + 8, f"Wrong, since {lacks}"))
        desc += f" In {devices} equal pieces, {lacks}"
        y += 24
    looks = ["sharded", "replicated"] if copies > 1 else ["sharded"]
    explained, height = legend(LEFT, y, looks)
    nodes = [node for node in (*body, *explained) if node is not None]
    return Picture(WIDTH, y + height + 8, f"Heads on devices: {title}", desc, nodes)


def _cache_bytes(heads: int, kv_heads: int, devices: int, head_size: int, positions: int) -> list[int]:
    """What `KVCache` holds on every device after one sequence, from a run without data."""

    def program(group: Group) -> int:
        layer, cache = ParallelSelfAttention(heads * head_size, heads, group, kv_heads), KVCache()
        x = torch.empty(1, positions, heads * head_size, dtype=torch.bfloat16)  # (1, S, hidden)  Replicate
        layer.bfloat16()(x, cache)
        return cache.nbytes

    with torch.device("meta"), torch.no_grad():
        return Cluster(devices).run(program)


def _holding(piece: torch.Tensor, heads: int, kv_heads: int, head_size: int, cache: int) -> Holding:
    owned = sorted({row // head_size for row in piece.tolist()})
    keys = [head - heads for head in owned if heads <= head < heads + kv_heads]
    return Holding([head for head in owned if head < heads], keys, cache)


def _device(y: float, rank: int, held: Holding, copies: int) -> list[Element | None]:
    """One device: its query heads, under them the keys and values they share, and its cache."""
    across = min(32 * len(held.queries), ROOM)
    drawn: list[Element | None] = [tag(LEFT, y + 27, rank, 52), label(RIGHT, y + 32, readable(held.cache, "B"), "end")]
    for line, (name, numbers, look) in enumerate(
        (("Q", held.queries, "sharded"), ("K, V", held.common, "replicated" if copies > 1 else "sharded"))
    ):
        each, top = across / len(numbers), y + 28 * line
        if each >= 18:
            drawn.append(block(CELLS, top, 1, len(numbers), (each, 24), look, rank, values=[[str(n) for n in numbers]]))
        else:
            drawn.append(block(CELLS, top, 1, 1, (across, 24), look, rank, values=[[stretch("head", numbers)]]))
        drawn.append(label(66, top + 17, name, size=13))
    return drawn


class _Bar:
    """The fused weight lying down: its rows from left to right, colored by who holds them."""

    def __init__(self, ends: Sequence[int]):
        self.ends = ends  # the rows at which queries, keys and values end, from 0 on

    def at(self, row: int) -> float:
        """Where the row begins."""
        return LEFT + row / self.ends[-1] * (RIGHT - LEFT)

    def draw(self, y: float, title: str, pieces: Sequence[torch.Tensor], copies: int) -> list[Element | None]:
        tall = max(TALL, STRIP * copies)
        drawn: list[Element | None] = [label(LEFT, y + 10, title, bold=True)]
        for name, (start, end) in zip(("Q", "K", "V"), pairwise(self.ends), strict=True):
            drawn.append(label((self.at(start) + self.at(end)) / 2, y + 30, name, "middle"))
        for rank, piece in enumerate(pieces):
            for start, stop in _runs(piece, self.ends):
                left, width = self.at(start), self.at(stop) - self.at(start)
                shared = copies > 1 and start >= self.ends[1]
                top, high = (y + 36 + STRIP * (rank % copies), STRIP) if shared else (y + 36, tall)
                values = [[str(rank)]] if width >= 10 else None
                look = "replicated" if shared else "sharded"
                inset = 1 if shared else 0  # so that the outlines of neighbors do not cover each other
                size = (width - 2 * inset, high - 2 * inset)
                drawn.append(block(left + inset, top + inset, 1, 1, size, look, rank, values=values))
        lines = "".join(f"M{number(self.at(row))} {number(y + 18)}V{number(y + 36 + tall)}" for row in self.ends)
        drawn.append(element("path", d=lines, stroke="currentColor", stroke_width=1.5, fill="none"))
        return drawn


def _runs(rows: torch.Tensor, ends: Sequence[int]) -> list[tuple[int, int]]:
    """The numbers in `rows` as (start, stop) of what is consecutive, not across the `ends`."""
    numbers = rows.tolist()
    breaks = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1 or numbers[i] in ends]
    return [(numbers[start], numbers[stop - 1] + 1) for start, stop in pairwise([0, *breaks, len(numbers)])]


def _says(rank: int, held: Holding) -> str:
    return (
        f"rank {rank} holds query {stretch('head', held.queries)}, keys and values of {stretch('head', held.common)}, "
        f"and a cache of {readable(held.cache, 'B')}"
    )
