"""Pictures of types: a move between two kinds, forward and backward, with what every device holds."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from book.pictures.kit.blocks import Look, arrow, block, hatches, label, tag
from book.pictures.kit.holders import check_devices
from book.pictures.kit.legend import legend
from book.pictures.kit.svg import Picture
from lib.parallel.sharding.placement import Partial, Shard
from lib.parallel.typed.kinds import Value, written
from lib.parallel.typed.moves import MOVES

WIDTH, ROW, CELLS, LEFT, RIGHT = 480, 30, 144, 84, 320
MOST_DEVICES = 4


def draw_move(name: str, devices: int) -> Picture:
    """What each device holds before and after one of `MOVES`: the value above, the gradient below, backward.

    The cells are the parts that the whole would be cut into. ValueError for an unknown move or more than 4 devices.
    """
    if name not in MOVES:
        raise ValueError(f"there is no move {name!r}; the moves are {', '.join(MOVES)}")
    if not 2 <= check_devices(devices) <= MOST_DEVICES:
        raise ValueError(f"{devices} devices do not fit this picture: from 2 to {MOST_DEVICES}")
    move = MOVES[name]
    other = Shard(1) if name == "all_to_all" else None  # the only move between two cuts
    value, gradient = (move.takes.value, other or move.makes.value), (other or move.makes.grad, move.takes.grad)
    forward, backward = move.bytes(100, devices)
    body: list[Element | None] = [hatches(range(devices)), label(8, 24, name, bold=True, size=15)]
    looks: set[Look] = set()
    told, y = [], 44
    for title, (before, after), verb, sent in (
        ("Forward, the value", value, move.forward, forward),
        ("Backward, its gradient", gradient, move.backward, backward),
    ):
        means = verb.replace("_", "-") if verb else "nothing is sent"
        body += [label(8, y + 8, f"{title}: {means}{f', {sent:.0f} % of it' if verb else ''}")]
        body += [label(LEFT, y + 28, written(before), size=12), label(RIGHT, y + 28, written(after), size=12)]
        for rank in range(devices):
            top = y + 36 + ROW * rank
            body.append(tag(8, top + 11, rank, 52))
            body.append(arrow((LEFT + CELLS + 12, top + 11), (RIGHT - 12, top + 11)) if verb else None)
            body += _held(before, rank, devices, LEFT, top) + _held(after, rank, devices, RIGHT, top)
        looks |= {_look(before), _look(after)}
        told.append(
            f"{title} goes from {written(before)} to {written(after)}"
            + (
                f" by {means}: each of {devices} devices sends {sent:.0f} % of the whole"
                if verb
                else ", nothing is sent"
            )
        )
        y += 36 + ROW * devices + 16
    explained, height = legend(8, y, sorted(looks))
    body += explained
    parts = [part for part in body if part is not None]
    title = f"{name} on {devices} devices"
    return Picture(WIDTH, y + height + 8, title, ". ".join([title, *told]) + ".", parts)


def _look(value: Value) -> Look:
    return "sharded" if isinstance(value, Shard) else "partial" if isinstance(value, Partial) else "replicated"


def _held(value: Value, rank: int, devices: int, x: float, y: float) -> list[Element]:
    """This device's cells: all, or the one at its place; cut along the other dim, a thin strip of all."""
    cell = CELLS / devices
    if value == Shard(1):
        return [block(x, y + 22 * rank / devices, 1, devices, (cell, 22 / devices), "sharded", rank)]
    if isinstance(value, Shard):
        return [block(x + cell * rank, y, 1, 1, (cell, 22), "sharded", rank)]
    return [block(x, y, 1, devices, (cell, 22), _look(value), rank)]
