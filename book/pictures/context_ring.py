"""`draw_ring`: one hop of ring attention, forward or backward: whose keys are where, and what travels on."""

from __future__ import annotations

from typing import Literal

from book.pictures.kit.blocks import arrow, label, tag
from book.pictures.kit.holders import check_devices
from book.pictures.kit.language import paint
from book.pictures.kit.svg import Picture, element, number
from lib.costs.context import pairs_by_hop
from lib.devices.counts import counted
from lib.parallel.context.cut import Order, token_places

WIDTH, TOP, HIGH = 480, 76, 58
BOX, WORK, SUMS = 66, 176, 292  # left edges: the keys, what is computed, the gradients


def draw_ring(order: Order, devices: int, hop: int, phase: Literal["forward", "backward"] = "forward") -> Picture:
    """What every device holds at `hop`, computes, and passes on to the next; later hops show the last.

    Two tokens for each device and stretch: enough to see who sees whom.

    Errors: ValueError for fewer than 2 devices or more than 8, or another phase.
    """
    check_devices(devices, 8)
    if devices < 2 or phase not in ("forward", "backward"):
        raise ValueError(f"devices={devices}, phase={phase!r}: a ring has two devices or more, and two phases")
    hop = min(hop, devices - 1)
    tokens = 4 * devices
    work = pairs_by_hop(tokens, devices, order)
    last = hop == devices - 1
    title = f"{phase}, hop {hop} of {devices - 1}"
    body = [
        label(8, 24, f"Ring attention, {order}: {title}", bold=True, size=15),
        label(BOX, 62, "keys, values", size=12),
        label(WORK, 62, "computed now", size=12),
        label(SUMS, 62, "sum of dK, dV" if phase == "backward" else "merged so far", size=12),
    ]
    told = []
    for rank in range(devices):
        y, source = TOP + HIGH * rank, (rank - hop) % devices
        p = paint(source)
        body.append(tag(8, y + 18, rank, 50))
        body.append(element("rect", x=BOX, y=y, width=96, height=36, rx=3, fill=p.fill, stroke=p.ink, data_keys=source))
        places = " ".join(str(i) for part in token_places(tokens, devices, source, order) for i in part)
        body.append(element("text", f"of rank {source}", x=BOX + 48, y=y + 15, fill=p.text, text_anchor="middle"))
        body.append(element("text", places, x=BOX + 48, y=y + 30, fill=p.text, text_anchor="middle", font_size=11))
        pairs = work[rank][hop]
        share = pairs / max(max(hops) for hops in work)
        frame = {"x": WORK, "y": y + 4, "height": 12, "stroke": paint(rank).ink}
        body.append(element("rect", width=96, fill="none", stroke_opacity=".5", **frame))
        body.append(element("rect", width=96 * share, fill=paint(rank).fill, data_pairs=pairs, **frame))
        body.append(label(WORK, y + 32, f"{counted(pairs, 'pair')}" if pairs else "nothing to see", size=12))
        now = f"rank {rank} has the keys of rank {source} and computes {counted(pairs, 'pair')}"
        if phase == "backward":
            who = [(source + step) % devices for step in range(1 if hop else 0, hop + 1)]
            now += f"; the sum of their gradients holds the terms of {', '.join(map(str, who))}"
            body.append(label(SUMS, y + 36, "stays at home" if hop == 0 else f"for rank {source}", size=12))
        else:
            who = [(rank - step) % devices for step in range(hop + 1) if work[rank][step]]
            now += f"; it has merged what it sees of rank{'s' * (len(who) > 1)} {', '.join(map(str, who))}"
        for place, term in enumerate(who):
            shade, x = paint(term), SUMS + 20 * place
            body.append(element("rect", x=x, y=y + 4, width=18, height=18, fill=shade.fill, stroke=shade.ink))
            body.append(element("text", str(term), x=x + 9, y=y + 17, fill=shade.text, text_anchor="middle"))
        told.append(now)
    bottom = TOP + HIGH * devices
    if not last:
        for rank in range(devices - 1):
            y = TOP + HIGH * rank
            body.append(
                element("g", arrow((BOX + 48, y + 36), (BOX + 48, y + HIGH)), data_message=f"{rank}>{rank + 1}")
            )
        around = f"M{BOX + 48} {number(bottom - HIGH + 36)}v12"
        body.append(
            element("path", d=around, fill="none", stroke="currentColor", stroke_width=2, stroke_dasharray="3 3")
        )
        body.append(label(BOX + 58, bottom - 8, f"and on to rank 0: rank {devices - 1} sends too", size=12))
    if phase == "backward" and hop:
        travels = "The sums travel on" + (", home to their owners: the last hop." if last else ", behind their keys.")
    elif phase == "backward":
        travels = "Keys and values travel on. The first share of the gradients waits at home."
    else:
        travels = "Nothing travels any more." if last else "Keys and values travel on while the blocks are computed."
    body.append(label(8, bottom + 14, travels, size=12))
    desc = f"Ring attention on {counted(devices, 'device')}, {order}, {title}. {'; '.join(told)}. {travels}"
    return Picture(WIDTH, bottom + 26, f"Ring attention, {title}", desc, body)
