"""Pictures of data parallelism: a batch cut over devices, and one training step, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

import torch

from book.pictures.kit.blocks import Look, arrow, block, hatches, label, tag
from book.pictures.kit.holders import check_devices, shape_text, stretch
from book.pictures.kit.legend import legend
from book.pictures.kit.svg import Picture
from lib.devices import Cluster, Group
from lib.devices.counts import counted
from lib.parallel.sharding.shards import shard, shard_sizes

WIDTH, TILE, STEP = 480, 20, 44
MOST_SAMPLES, MOST_DEVICES = 8, 8
STAGES = ("start", "broadcast", "shard the batch", "backward", "all-reduce", "update")


def draw_batch(shape: Sequence[int], devices: int, out: int = 10) -> Picture:
    """A batch of `shape` (batch, ...) cut along its first dimension: each device has some samples, and all weights.

    The numbers in the tiles are those of the samples. `out` is what the model makes of one sample: so many numbers.

    Errors: ValueError for more than 8 samples or devices, or fewer samples than devices.
    """
    samples = shape[0]
    if check_devices(devices) > MOST_DEVICES or not devices <= samples <= MOST_SAMPLES:
        raise ValueError(
            f"{samples} samples on {devices} devices do not fit this picture: at most {MOST_SAMPLES} samples and "
            f"{MOST_DEVICES} devices, and no fewer samples than devices"
        )
    sizes, first, told = shard_sizes(samples, devices), 0, []
    body: list[Element | None] = [
        label(8, 24, f"x {shape_text(tuple(shape))}", bold=True, size=15),
        label(472, 24, f"Shard(0) on {counted(devices, 'device')}", "end"),
        label(70, 48, "its samples", size=12),
        label(250, 48, "all weights", size=12),
        label(340, 48, "its outputs", size=12),
    ]
    for rank, count in enumerate(sizes):
        y = 58 + STEP * rank
        numbers = [[str(first + i) for i in range(count)]]
        body += [
            tag(8, y + TILE / 2, rank, 52),
            block(70, y, 1, count, (TILE, TILE), "sharded", rank, values=numbers),
            arrow((70 + TILE * 8 + 4, y + 10), (252, y + 10)),
            block(258, y - 3, 2, 3, (15, 13), "replicated", rank),
            arrow((308, y + 10), (336, y + 10)),
            block(342, y, 1, count, (13, TILE), "sharded", rank),
            label(70, y + 35, shape_text((count, *shape[1:])), size=12),
            label(342, y + 35, shape_text((count, out)), size=12),
        ]
        samples_here = stretch("sample", range(first, first + count))
        told.append(f"rank {rank} has {samples_here}, {shape_text((count, *shape[1:]))}")
        first += count
    bottom = 58 + STEP * devices + 10
    body.append(label(8, bottom, f"Side by side, the outputs are y {shape_text((samples, out))}."))
    explained, height = legend(8, bottom + 8, ["sharded", "replicated"])
    desc = (
        f"A batch {shape_text(tuple(shape))} on {counted(devices, 'device')}, cut along dim 0; all weights on every "
        f"device: {'; '.join(told)}. The outputs side by side are {shape_text((samples, out))}."
    )
    return Picture(
        WIDTH, bottom + height + 16, "A batch over devices", desc, [n for n in (*body, *explained) if n is not None]
    )


def draw_training_step(devices: int, stage: str) -> Picture:
    """One step of training y = w x on one sample per device, up to `stage`: what every device holds, as numbers.

    The weight starts with another value on every device, as it does with another seed; the broadcast mends that.

    Errors: ValueError for a stage that is none of `STAGES`, or more than 8 devices.
    """
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}; the stages are {', '.join(STAGES)}")
    if check_devices(devices) > MOST_DEVICES:
        raise ValueError(f"{devices} devices do not fit this picture: at most {MOST_DEVICES}")
    at = STAGES.index(stage)
    seen = Cluster(devices).run(_training_step)
    columns: list[tuple[str, int, Look]] = [
        ("weight w", 70, "sharded" if at == 0 else "replicated"),
        ("sample x", 190, "sharded"),
        ("gradient of w", 310, "partial" if at == 3 else "replicated"),
    ]
    says = {
        "start": "Every device made its own weight: they differ.",
        "broadcast": "Rank 0's weight goes to all. Now they are replicas.",
        "shard the batch": "Each device takes its own sample. Nothing is sent.",
        "backward": "Each has the gradient of its own sample: a term of the mean.",
        "all-reduce": "The gradients are added and divided by the number of devices.",
        "update": "The same weight minus the same step: still replicas.",
    }[stage]
    body: list[Element | None] = [
        hatches(range(devices)),
        label(8, 24, f"{at + 1}. {stage}", bold=True, size=15),
        *[label(x, 48, name, size=12) for name, x, _ in columns],
    ]
    told = []
    for rank, values in enumerate(seen):
        y = 58 + 36 * rank
        body.append(tag(8, y + 13, rank, 52))
        for (name, x, look), value in zip(columns, values[at], strict=True):
            if value is not None:
                body.append(block(x, y, 1, 1, (64, 26), look, rank, values=[[f"{value:g}"]]))
                told.append(f"rank {rank} {name} {value:g}")
    bottom = 58 + 36 * devices + 14
    body.append(label(8, bottom, says))
    looks = sorted({look for (_, _, look), value in zip(columns, seen[0][at], strict=True) if value is not None})
    explained, height = legend(8, bottom + 8, looks)
    title = f"A training step, {stage}"
    desc = f"{stage}: {says} {'; '.join(told)}."
    return Picture(WIDTH, bottom + height + 16, title, desc, [n for n in (*body, *explained) if n is not None])


def _training_step(group: Group) -> list[tuple[float | None, float | None, float | None]]:
    """(weight, sample, gradient) on this device at each of `STAGES`; None where there is none yet."""
    batch = torch.arange(1.0, group.size + 1)  # (P,)  Replicate
    w = torch.tensor(2.0 + group.rank)  # ()  another seed, another value
    stages = [(w.item(), None, None)]
    w = group.broadcast(w)  # ()  Replicate
    stages.append((w.item(), None, None))
    x = shard(batch, group, 0)  # (1,)  Shard(0)
    stages.append((w.item(), x.item(), None))
    w = w.clone().requires_grad_()
    (w * x).square().sum().backward()  # the loss of this sample
    gradient = w.grad  # ()  Partial: a term of the mean
    stages.append((w.item(), x.item(), gradient.item()))
    gradient = group.all_reduce(gradient) / group.size  # ()  Replicate
    stages.append((w.item(), x.item(), gradient.item()))
    w = w.detach() - 0.01 * gradient  # ()  Replicate
    stages.append((w.item(), x.item(), gradient.item()))
    return stages
