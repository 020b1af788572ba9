"""`draw_hops`: an all-reduce made of messages, stepped one hop at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from book.exercises.check.trials import STEPS
from book.pictures.kit.blocks import arrow, block, hatches, label, tag
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element
from lib.devices import Cluster, Group

MOST = 8  # devices; each is a digit of the numbers shown


@dataclass(frozen=True)
class Hop:
    """`size` bytes on their way from `src` to `dst`: `numbers`, one per piece."""

    src: int
    dst: int
    numbers: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Step:
    """The messages of one step, and what every device holds after it: a number per piece."""

    messages: tuple[Hop, ...]
    holds: tuple[tuple[int, ...], ...]


class Listening:
    """A group whose sends and recvs are noted. The algorithm does not know."""

    def __init__(self, group: Group, heard: list[tuple[int, int, Tensor]]):
        self.rank, self.size = group.rank, group.size
        self._group, self._heard = group, heard

    def send(self, x: Tensor, dst: int, tag: int = 0) -> None:
        """As `Group.send`."""
        self._group.send(x, dst, tag)

    def recv(self, src: int, tag: int = 0) -> Tensor:
        """As `Group.recv`, and noted."""
        x = self._group.recv(src, tag)
        self._heard.append((src, self.rank, x.clone()))
        return x


def hops(algorithm: Callable[[Group, Tensor], Tensor], devices: int) -> list[Step]:
    """The steps of `algorithm(group, x)`, an all-reduce made of send and recv: first the start, with no message yet.

    Piece i of device r is the number (i+1) 10^r. Digits that are not zero tell whose terms a sum holds already.

    Errors: ValueError if there are more than 8 devices, or the result is not the sum.
    """
    if not 2 <= devices <= MOST:
        raise ValueError(f"devices={devices}: hops can be told apart for 2 to {MOST} devices")
    heard: list[tuple[int, int, Tensor]] = []
    cluster = Cluster(devices, hardware=STEPS)
    start = torch.arange(1, devices + 1)
    outputs = cluster.run(lambda group: algorithm(Listening(group, heard), start * 10**group.rank))
    arrivals = defaultdict(list)  # rank -> seconds at which its messages set out, in the order of its recvs
    for event in cluster.trace.events:
        if event.name.startswith("recv from") and event.kind == "communication":
            arrivals[event.rank].append(round(event.start))
    by_step: dict[int, list[Hop]] = defaultdict(list)
    for src, dst, x in heard:
        numbers = tuple(x.flatten().tolist())
        by_step[arrivals[dst].pop(0)].append(Hop(src, dst, numbers, x.numel() * x.element_size()))
    holds = [list((start * 10**rank).tolist()) for rank in range(devices)]
    steps = [Step((), _frozen(holds))]
    for number in range(max(by_step, default=-1) + 1):
        messages = sorted(by_step[number], key=lambda message: message.src)
        for message in messages:
            for value in message.numbers:
                piece = int(str(value)[0]) - 1  # its first digit is that of every term
                mine = holds[message.dst][piece]
                holds[message.dst][piece] = value if _contains(value, mine) else mine + value
        steps.append(Step(tuple(messages), _frozen(holds)))
    right = [list(output.flatten().tolist()) for output in outputs]
    total = (start * int("1" * devices)).tolist()
    if any(output != total for output in right) or holds != right:
        raise ValueError(
            f"{getattr(algorithm, '__name__', algorithm)} is no all-reduce: it gives {right[0]}, not {total}"
        )
    return steps


def draw_hops(steps: list[Step], step: int, name: str = "all-reduce") -> Picture:
    """What every device holds after `step` steps, and the messages that made it so. Later steps show the last.

    Filled: a finished piece. Hatched: some terms are still missing.
    """
    step = min(step, len(steps) - 1)
    now, devices = steps[step], len(steps[0].holds)
    full = int("1" * devices)
    width = min(8.0 + 7.5 * devices, 300 / devices)
    cells_right = 70 + width * devices
    top, high = 46, 42
    head = "at the start" if step == 0 else f"after step {step} of {len(steps) - 1}"
    body = [hatches(range(devices)), label(8, 24, name, bold=True, size=15), label(472, 24, head, "end")]
    sent, got = [0] * devices, [0] * devices
    for message in (m for s in steps[: step + 1] for m in s.messages):
        sent[message.src] += message.size
        got[message.dst] += message.size
    for rank, numbers in enumerate(now.holds):
        y = top + high * rank
        body.append(tag(8, y + 14, rank, 52))
        for piece, value in enumerate(numbers):
            look = "sharded" if value == (piece + 1) * full else "partial"
            body.append(block(70 + width * piece, y, 1, 1, (width - 3, 28), look, rank, values=[[str(value)]]))
        body += [
            label(472, y + 11, f"sent {sent[rank]} B", "end", size=12),
            label(472, y + 26, f"got {got[rank]} B", "end", size=12),
        ]
    for i, message in enumerate(now.messages):
        lane = cells_right + 16 + (i % 5) * 16
        out, into = top + high * message.src + 8, top + high * message.dst + 21
        body.append(
            element(
                "g",
                arrow((cells_right, out), (lane, out), (lane, into), (cells_right, into)),
                color=paint(message.src).ink,
                fill=paint(message.src).ink,
                data_message=f"{message.src}>{message.dst}",
            )
        )
    bottom = top + high * devices + 14
    load = [max(pair) for pair in zip(sent, got, strict=True)]
    busy = (
        f"Busiest device so far: {max(load)} bytes one way. All together: {sum(sent)}."
        if step
        else "Each digit is one device's term: a piece is finished when no digit is 0."
    )
    body.append(label(8, bottom, busy))
    travels = "; ".join(
        f"rank {m.src} sends {', '.join(map(str, m.numbers))} ({m.size} bytes) to rank {m.dst}" for m in now.messages
    )
    held = "; ".join(f"rank {r} holds {list(numbers)}" for r, numbers in enumerate(now.holds))
    desc = f"{name}, {head}. {travels + '. ' if travels else ''}Now {held}. {busy}"
    return Picture(480, bottom + 12, f"{name}, {head}", desc, body)


def _frozen(holds: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, holds))


def _contains(sum_: int, term: int) -> bool:
    """Whether the sum holds this term already."""
    return (
        all(a == b or b == "0" for a, b in zip(reversed(str(sum_)), reversed(str(term)), strict=False)) and sum_ >= term
    )
