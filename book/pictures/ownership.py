"""`draw_ownership`: which part of the model's state each device holds, at every stage of ZeRO."""

from __future__ import annotations

from book.pictures.kit.blocks import block, ghost, label, tag
from book.pictures.kit.holders import check_devices
from book.pictures.kit.legend import legend
from book.pictures.kit.svg import Picture
from lib.costs.zero import zero_bytes
from lib.devices.counts import counted

WIDTH, LEFT, BYTE, GAP, ROW, TOP = 480, 70, 24, 10, 36, 64  # BYTE: the width of one byte per parameter
MOST = 8
# What is held, how it is labeled, and from which stage on each device holds its own part alone.
KINDS = (("parameters", "weights", 3), ("gradients", "grads", 2), ("optimizer", "Adam state with master weights", 1))


def draw_ownership(devices: int, stage: int) -> Picture:
    """A row per device: its parameters, their gradients and Adam's state, as wide as they are large (2 : 2 : 12 bytes).

    Each is cut into as many parts as there are devices. Filled: one device alone holds the part. Outlined: all do.

    Errors: ValueError for an unknown stage, no devices or more than 8.
    """
    if check_devices(devices) > MOST:
        raise ValueError(f"devices={devices} must be from 1 to {MOST}, or the parts cannot be seen")
    held, whole = zero_bytes(1, devices, stage), zero_bytes(1, 1, 0)
    room = (WIDTH - 8 - LEFT - GAP * (len(KINDS) - 1)) / whole.total
    body, x, told = [label(8, 24, f"Stage {stage}: who holds what", bold=True, size=15)], float(LEFT), []
    for kind, name, since in KINDS:
        width, own = getattr(whole, kind) * room, stage >= since
        body.append(label(x, TOP - 12, name, size=12))
        for rank in range(devices):
            y, part = TOP + ROW * rank, width / devices
            body.append(ghost(x, y, width, 22) if own else None)
            at, parts, look = (x + part * rank, 1, "sharded") if own else (x, devices, "replicated")
            body.append(block(at, y, 1, parts, (part, 22), look, rank))
        x += width + GAP
        told.append(f"{'its own part of the' if own else 'all the'} {name}")
    body += [tag(8, TOP + 11 + ROW * rank, rank, 52) for rank in range(devices)]
    bottom = TOP + ROW * devices + 12
    body.append(label(8, bottom, f"{held.total:.4g} of 16 bytes per parameter on each device"))
    looks = [look for look, some in (("sharded", stage > 0), ("replicated", stage < 3)) if some]
    explained, height = legend(8, bottom + 8, looks)
    desc = (
        f"Stage {stage} of ZeRO on {counted(devices, 'device')}. Each device holds {', '.join(told)}: {held.total:.4g} "
        "of 16 bytes per parameter."
    )
    drawn = [part for part in body if part is not None]
    return Picture(WIDTH, bottom + 8 + height, f"Stage {stage}: who holds what", desc, [*drawn, *explained])
