"""`draw_verb`: one collective, before and after, with the numbers of a real run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import torch
from torch import Tensor

from book.pictures.kit.blocks import Look, arrow, block, hatches, label, tag
from book.pictures.kit.holders import check_devices
from book.pictures.kit.legend import legend
from book.pictures.kit.svg import Picture, element
from lib.devices import Cluster, Group
from lib.devices.counts import counted

WIDTH = 480


@dataclass(frozen=True)
class Example:
    """A verb as the pictures show it: the call, and how what is brought and what is got lies on the devices.

    `mixed`: what a device gets comes from all of them, a number from each: it keeps the color of its origin.
    `whole`: each device brings (or, of those that bring anything, the first does) one number per device; else one
    number. `alone`: only rank 0 brings something, or only rank 0 gets something.
    """

    call: Callable[[Group, Tensor], Tensor | None]
    brings: Look
    gets: Look
    whole: bool = True
    alone: str = ""
    mixed: bool = False


def _send_and_recv(group: Group, x: Tensor) -> Tensor | None:
    if group.rank == 0:
        group.send(x, group.size - 1)
    return group.recv(0) if group.rank == group.size - 1 else None


EXAMPLES = {
    "broadcast": Example(lambda group, x: group.broadcast(x), "replicated", "replicated", alone="before"),
    "scatter": Example(lambda group, x: group.scatter(x), "replicated", "sharded", alone="before"),
    "gather": Example(lambda group, x: group.gather(x), "sharded", "replicated", whole=False, alone="after"),
    "reduce": Example(lambda group, x: group.reduce(x), "partial", "replicated", alone="after"),
    "all_gather": Example(lambda group, x: group.all_gather(x), "sharded", "replicated", whole=False),
    "all_reduce": Example(lambda group, x: group.all_reduce(x), "partial", "replicated"),
    "reduce_scatter": Example(lambda group, x: group.reduce_scatter(x), "partial", "sharded"),
    "all_to_all": Example(lambda group, x: group.all_to_all(x), "sharded", "sharded", mixed=True),
    "send and recv": Example(_send_and_recv, "replicated", "replicated", alone="before"),
}


def draw_verb(verb: str, devices: int = 4) -> Picture:
    """What each of `devices` (1 to 4) devices brings to `verb` and has afterwards, and what the busiest one sends.

    Device r brings numbers with r zeros at the end, so that each digit of a sum tells where it comes from.

    Errors: ValueError for an unknown verb or a number of devices that does not fit.
    """
    if check_devices(devices) > 4:
        raise ValueError(f"devices={devices} does not fit this picture: pass 1 to 4")
    if verb == "barrier":
        return _barrier(devices)
    if verb not in EXAMPLES:
        raise ValueError(f"there is no picture of {verb!r}; there are those of {', '.join(EXAMPLES)} and barrier")
    before, after, cluster = run(verb, devices)
    size = (8.0 + 7.5 * devices, 26)
    top, step = 56, 40
    body: list[Element | None] = [
        hatches(range(devices)),
        label(8, 24, verb, bold=True, size=15),
        label(72, 46, "brings", size=12),
        label(312, 46, "has afterwards", size=12),
    ]
    example = EXAMPLES[verb]
    for rank in range(devices):
        y = top + step * rank
        body.append(tag(8, y + 13, rank, 52))
        body += _row(72, y, size, before[rank], example.brings, rank)
        body += _row(312, y, size, after[rank], example.gets, rank, mixed=example.mixed)
    middle = top + step * devices / 2 - 7
    body.append(arrow((250, middle), (300, middle)))
    bottom = top + step * devices + 12
    counts = [cluster.meters.count(rank) for rank in range(devices)]
    busiest = max(counts, key=lambda count: (count.bytes_sent, count.messages_sent))
    messages = f"{counted(busiest.messages_sent, 'message')}"
    cost = f"The busiest device sends {busiest.bytes_sent} bytes in {messages} (8 per number)."
    body.append(label(8, bottom, cost))
    explained, height = legend(8, bottom + 8, sorted({example.brings, example.gets}, reverse=True))
    told = "; ".join(
        f"rank {rank} brings {_listed(before[rank])} and has {_listed(after[rank])}" for rank in range(devices)
    )
    return Picture(
        WIDTH,
        bottom + height + 16,
        f"{verb} on {counted(devices, 'device')}",
        f"{verb}: {told}. {cost}",
        [node for node in (*body, *explained) if node is not None],
    )


def run(verb: str, devices: int) -> tuple[list[Tensor | None], list[Tensor | None], Cluster]:
    """What the devices bring to `verb`, what they get, and the cluster on which it ran."""
    example = EXAMPLES[verb]
    whole = torch.arange(1, (devices if example.whole else 1) + 1)
    brought = [whole * 10**rank if example.alone != "before" or rank == 0 else None for rank in range(devices)]
    cluster = Cluster(devices)
    return brought, cluster.run(lambda group: example.call(group, brought[group.rank])), cluster


def draw_verbs(verbs: Sequence[str] = tuple(EXAMPLES), devices: int = 4) -> Picture:
    """`verbs` and the barrier on one page, before and after, two to a line: what to print and put on the wall."""
    cell, wide, high = (14, 13), 240, 26 * devices + 42
    body: list[Element | None] = [hatches(range(devices))]
    for i, verb in enumerate(verbs):
        before, after, _ = run(verb, devices)
        x, y = 8 + wide * (i % 2), 8 + high * (i // 2)
        body.append(label(x, y + 14, verb, bold=True, size=14))
        for rank in range(devices):
            row = y + 28 + 26 * rank
            body.append(tag(x, row + 7, rank, 18))
            body += _row(x + 28, row, cell, before[rank], EXAMPLES[verb].brings, rank, numbers=False)
            body += _row(x + 140, row, cell, after[rank], EXAMPLES[verb].gets, rank, False, EXAMPLES[verb].mixed)
        middle = y + 22 + 13 * devices
        body.append(arrow((x + 100, middle), (x + 128, middle)))
    i, y = len(verbs), 8 + high * (len(verbs) // 2)
    x = 8 + wide * (i % 2)
    body.append(label(x, y + 14, "barrier", bold=True, size=14))
    for rank in range(devices):
        row = y + 35 + 26 * rank
        body += [tag(x, row, rank, 18), label(x + 28, row + 4.5, "comes", size=12)]
        body += [arrow((x + 76, row), (x + 128, row)), label(x + 140, row + 4.5, "goes on", size=12)]
    body.append(_wall(x + 100, y + 22, 26 * devices))
    bottom = 8 + high * (len(verbs) // 2 + 1)
    explained, height = legend(8, bottom, ["sharded", "replicated", "partial", "arrow"])
    desc = (
        "Before and after on "
        + f"{counted(devices, 'device')}. "
        + " ".join(
            f"{verb}: {_holders(run(verb, devices)[0], EXAMPLES[verb].brings)} to "
            f"{_holders(run(verb, devices)[1], EXAMPLES[verb].gets)}."
            for verb in verbs
        )
        + " barrier: nothing is moved, but nobody goes on before all have come."
    )
    title = f"The collectives on {counted(devices, 'device')}"
    return Picture(WIDTH, bottom + height + 8, title, desc, [n for n in (*body, *explained) if n is not None])


def _row(
    x: float,
    y: float,
    size: tuple[float, float],
    held: Tensor | None,
    look: Look,
    rank: int,
    numbers: bool = True,
    mixed: bool = False,
) -> list[Element | None]:
    if held is None:
        return [label(x, y + size[1] / 2 + 4.5, "nothing", size=12)] if numbers else [_nothing(x, y + size[1] / 2)]
    values = [[str(v) for v in held.tolist()]] if numbers else None
    if mixed:  # cell i came from rank i
        texts = values[0] if values else [None] * len(held)
        return [
            block(x + i * size[0], y, 1, 1, size, look, i, values=None if text is None else [[text]])
            for i, text in enumerate(texts)
        ]
    return [block(x, y, 1, len(held), size, look, rank, values=values)]


def _nothing(x: float, y: float) -> Element:
    return element("path", d=f"M{x} {y}h14", stroke="currentColor", stroke_opacity=".5", stroke_dasharray="2 3")


def _barrier(devices: int) -> Picture:
    order: list[tuple[str, int]] = []

    def program(group: Group) -> None:
        order.append(("comes", group.rank))
        group.barrier()
        order.append(("goes on", group.rank))

    Cluster(devices).run(program)
    place = {event: i + 1 for i, event in enumerate(order)}
    body = [label(8, 24, "barrier", bold=True, size=15)]
    for rank in range(devices):
        y = 56 + 40 * rank
        body += [
            tag(8, y + 13, rank, 52),
            label(72, y + 17, f"{place['comes', rank]}. comes"),
            arrow((250, y + 13), (300, y + 13)),
            label(312, y + 17, f"{place['goes on', rank]}. goes on"),
        ]
    wall = _wall(275, 44, 8 + 40 * devices)
    told = ", ".join(f"{i}. rank {rank} {what}" for i, (what, rank) in enumerate(order, 1))
    desc = f"barrier: nothing is moved, but nobody goes on before all have come. In this run: {told}."
    return Picture(WIDTH, 64 + 40 * devices, f"barrier on {counted(devices, 'device')}", desc, [*body, wall])


def _wall(x: float, top: float, tall: float) -> Element:
    return element("path", d=f"M{x} {top}v{tall}", stroke="currentColor", stroke_width=3, stroke_dasharray="6 3")


def _listed(held: Tensor | None) -> str:
    return "nothing" if held is None else str(held.tolist())


def _holders(held: list[Tensor | None], look: Look) -> str:
    count = sum(x is not None for x in held)
    what = {"sharded": "a piece", "replicated": "the whole", "partial": "a term of the sum"}[look]
    return f"{what} on {'every device' if count == len(held) else 'one device'}"
