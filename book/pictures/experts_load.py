"""`draw_load`: how the work of a layer of experts is shared among the devices, step by step of a training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from xml.etree.ElementTree import Element

from book.pictures.kit.blocks import label
from book.pictures.kit.holders import check_devices
from book.pictures.kit.language import PAPER, paint
from book.pictures.kit.svg import Picture, element, number
from lib.devices.counts import counted

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 480, 56, 400, 48, 208


def draw_load(rows: Sequence[Sequence[float]], title: str) -> Picture:
    """rows[step][device], stacked: each device's share of all rows, as a band of its color.

    Bands of one height are what balance looks like; the lines mark where they would end.

    Errors: ValueError for fewer than two steps, steps of different lengths, or a step without rows.
    """
    if len(rows) < 2 or len(set(map(len, rows))) > 1 or min(map(sum, rows)) <= 0:
        raise ValueError("draw_load needs two steps or more, all with a number for each device, and some rows in each")
    devices = check_devices(len(rows[0]), 8)
    shares = [[value / sum(step) for value in step] for step in rows]
    ends = [[0.0, *accumulate(step)] for step in shares]  # of each step, where each device's band begins and ends
    xs = [LEFT + (RIGHT - LEFT) * i / (len(rows) - 1) for i in range(len(rows))]

    def y(share: float) -> float:
        return BOTTOM - share * (BOTTOM - TOP)

    body: list[Element] = [label(8, 24, title, bold=True, size=15)]
    for rank in range(devices):
        path = [(x, y(end[rank])) for x, end in zip(xs, ends, strict=True)]
        path += [(x, y(end[rank + 1])) for x, end in zip(reversed(xs), reversed(ends), strict=True)]
        line = "M" + "L".join(f"{number(px)} {number(py)}" for px, py in path) + "z"
        p = paint(rank)
        body.append(element("path", d=line, fill=p.fill, stroke=PAPER, stroke_width=1, data_rank=rank))
    for i in range(devices + 1):
        body.append(label(LEFT - 6, y(i / devices) + 4, f"{100 * i / devices:.3g} %", "end", size=12))
    fair = "".join(f"M{LEFT} {number(y(i / devices))}H{RIGHT}" for i in range(1, devices))
    body.append(element("path", d=fair, stroke="currentColor", stroke_width=1.5, stroke_dasharray="4 4", fill="none"))
    for rank in range(devices):  # named at even places: the last bands may be too thin for a word
        middle = y((rank + 0.5) / devices)
        p = paint(rank)
        body.append(element("rect", x=RIGHT + 10, y=middle - 10, width=56, height=20, rx=4, fill=p.fill, stroke=p.ink))
        words = element("text", f"rank {rank}", x=RIGHT + 38, y=middle + 4.5, fill=p.text, text_anchor="middle")
        body.append(words)
    body.append(label((LEFT + RIGHT) / 2, BOTTOM + 20, f"steps 1 to {len(rows)}", "middle", size=12))
    first, last = (max(step) * devices for step in (shares[0], shares[-1]))
    told = f"The busiest device: {first:.2f} times an even share at first, {last:.2f} at last."
    body.append(label(8, BOTTOM + 42, told, size=12))
    listed = "; ".join(f"rank {rank}: {100 * share:.0f} %" for rank, share in enumerate(shares[-1]))
    desc = f"{title}. Shares of the rows of {counted(devices, 'device')} over {len(rows)} steps. {told} Last: {listed}."
    return Picture(WIDTH, BOTTOM + 54, title, desc, body)
