"""`draw_rotary`: how far a plane of a query or key is turned at each position, on devices that hold some tokens."""

from __future__ import annotations

import math
from xml.etree.ElementTree import Element

import torch

from book.pictures.kit.blocks import label, tag
from book.pictures.kit.holders import check_devices
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element, number
from lib.devices.counts import counted
from lib.parallel.llama.rotary import turn_of
from lib.parallel.sharding.placement import Shard

WIDTH, LEFT, RADIUS, STEP, PER_ROW, TOP = 480, 72, 19, 50, 8, 78
TOKENS = 16
KINDS = ("of the whole text", "of the piece")


def draw_rotary(devices: int, positions: str = "of the whole text") -> Picture:
    """A clock for each of 16 tokens, its hand where the plane stands. Devices hold neighboring tokens.

    `positions` are counted in the whole text, or anew on every device. Angles are those of `turn_of`, of a plane that
    turns by about a sixteenth of a circle for each position.

    Errors: ValueError for other `positions`, or devices that do not divide the 16 tokens.
    """
    if positions not in KINDS:
        raise ValueError(f"positions={positions!r} must be one of {', '.join(map(repr, KINDS))}")
    if TOKENS % check_devices(devices, TOKENS // 2):
        raise ValueError(f"{TOKENS} tokens cannot be divided over {devices} devices")
    whole = torch.arange(TOKENS)
    theta = (16 / (2 * math.pi)) ** 2  # plane 1 of 2 then turns by 2 pi / 16 at each position
    title = f"Positions {positions}, on {counted(devices, 'device')}"
    body: list[Element] = [label(8, 24, title, bold=True, size=15), label(8, 48, "token, and below it its position")]
    y, told, first = float(TOP), [], []
    for rank in range(devices):
        tokens = Shard(0).piece(whole, devices, rank)
        places = tokens if positions == KINDS[0] else torch.arange(len(tokens))
        cos, sin = (part[:, 1].tolist() for part in turn_of(places, 4, theta))
        first.append((cos[0], sin[0]))
        for i, (token, place) in enumerate(zip(tokens.tolist(), places.tolist(), strict=True)):
            row, column = divmod(i, PER_ROW)
            at = LEFT + RADIUS + column * STEP, y + row * (STEP + 36) + RADIUS
            body += _clock(*at, cos[i], sin[i], rank, token, place)
        body.append(tag(8, y + RADIUS, rank, 52))
        y += (STEP + 36) * math.ceil(len(tokens) / PER_ROW) + 6
        told.append(
            f"rank {rank} has tokens {tokens[0]} to {tokens[-1]}, turned by positions {places[0]} to {places[-1]}"
        )
    right = positions == KINDS[0] or devices == 1
    verdict = (
        "Every token is turned by its place in the whole text."
        if right
        else f"Token {TOKENS // devices} is turned as token 0: the model takes them for one position."
    )
    body.append(label(8, y - 12, verdict, bold=True))
    return Picture(WIDTH, y + 2, title, f"{title}. {'; '.join(told)}. {verdict}", body)


def _clock(x: float, y: float, cos: float, sin: float, rank: int, token: int, place: int) -> list[Element]:
    p = paint(rank)
    hand = f"M{number(x)} {number(y)}L{number(x + 15 * cos)} {number(y - 15 * sin)}"
    return [
        label(x, y - RADIUS - 4, str(token), "middle", size=12),
        element(
            "g",
            element("circle", cx=x, cy=y, r=RADIUS, fill=p.fill, stroke=p.ink),
            element("path", d=hand, stroke=p.text, stroke_width=3, stroke_linecap="round"),
            data_rank=rank,
            data_look="clock",
        ),
        label(x, y + RADIUS + 14, str(place), "middle", bold=True, size=12),
    ]
